// The plan in a saved state: a cache that follows a plan writes it, so that no other cache reads its bytes as its own.
#pragma once

#include <cstdint>

class llama_io_read_i;
class llama_io_write_i;
class llama_kv_cache;

// Before the cache's own data. A cache without a plan writes nothing, as upstream does.
void kvtuner_state_write(const llama_kv_cache & cache, llama_io_write_i & io);

// A load of a state begins: forgets why an earlier one was refused, or another call failed, if nobody has asked.
void kvtuner_state_begin();

// Reads what kvtuner_state_write wrote and the number of streams that follows, which it returns.
// Throws std::runtime_error that names both plans where they differ; the cache is still untouched then.
uint32_t kvtuner_state_read(const llama_kv_cache & cache, llama_io_read_i & io);
