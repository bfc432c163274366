// Why a call of the library failed, kept from its log for callers that show no log.
#pragma once

#include "ggml.h"

// Called with every line that the library logs.
void kvtuner_note_log(ggml_log_level level, const char * text);
