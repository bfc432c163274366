// JSON as RFC 8259 has it, and nothing more: the twin of kvtuner_gguf/files/strictjson.py, which says what is refused.
#pragma once

#include <nlohmann/json.hpp>

#include <string>

// The value that the text holds. Throws std::runtime_error with line and column where it is no JSON.
nlohmann::json kvtuner_parse_json(const std::string & text);

// A text of outside data for a message of one line: short, with \xNN for each byte that is no printable ASCII.
std::string kvtuner_quoted(const std::string & text);

// A value of outside data for such a message.
std::string kvtuner_shown(const nlohmann::json & value);

// The member of an object called so; null where there is none, or no object.
const nlohmann::json & kvtuner_member(const nlohmann::json & object, const char * key);

// A whole number from 0 to 2^31 - 1.
bool kvtuner_is_count(const nlohmann::json & value);
