#include "kvtuner-strict-json.h"

#include <algorithm>
#include <cstdio>
#include <stdexcept>

using json = nlohmann::json;

namespace {

constexpr int MAX_JSON_DEPTH = 64;
constexpr size_t MAX_QUOTED = 40;
constexpr int64_t MAX_COUNT = (int64_t(1) << 31) - 1;
constexpr const char * BYTE_ORDER_MARK = "\xef\xbb\xbf";

bool is_between(char c, unsigned char low, unsigned char high) {
    return (unsigned char)c >= low && (unsigned char)c <= high;
}

bool is_ascii_digit(char c) {
    return is_between(c, '0', '9');
}

[[noreturn]] void not_json(const std::string & reason) {
    throw std::runtime_error("not JSON (" + reason + "): correct it or tune again");
}

// the bytes of the UTF-8 character at `at`, 0 where it is none (Unicode 15, table 3-7)
size_t utf8_length(const std::string & text, size_t at) {
    const unsigned char first = (unsigned char)text[at];
    if (first < 0x80) {
        return 1;
    }
    const size_t n = is_between(text[at], 0xc2, 0xdf)   ? 2
                     : is_between(text[at], 0xe0, 0xef) ? 3
                     : is_between(text[at], 0xf0, 0xf4) ? 4
                                                        : 0;
    if (n == 0 || n > text.size() - at) {
        return 0;
    }
    const unsigned char low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
    const unsigned char high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
    const bool is_whole =
            std::all_of(text.begin() + at + 2, text.begin() + at + n, [](char c) { return is_between(c, 0x80, 0xbf); });
    return is_between(text[at + 1], low, high) && is_whole ? n : 0;
}

void check_utf8(const std::string & text) {
    for (size_t at = 0, n; at < text.size(); at += n) {
        n = utf8_length(text, at);
        if (n == 0) {
            not_json("byte " + std::to_string(at) + " is no utf-8");
        }
    }
}

// Texts and numbers are found here and decoded by the JSON library.
class json_reader {
public:
    explicit json_reader(const std::string & text) : text(text) {
        begin = at = text.compare(0, 3, BYTE_ORDER_MARK) == 0 ? 3 : 0;
    }

    json whole() {
        pass_space();
        json found = value(0);
        if (at < text.size()) {
            fail("something follows the value", at);
        }
        return found;
    }

private:
    const std::string & text;
    size_t begin;
    size_t at;

    [[noreturn]] void fail(const std::string & reason, size_t where) const {
        size_t line = 1, column = 1;
        for (size_t i = begin; i < where; ++i) {
            line += text[i] == '\n';
            column = text[i] == '\n' ? 1 : column + ((text[i] & 0xc0) != 0x80);
        }
        not_json("line " + std::to_string(line) + ", column " + std::to_string(column) + ": " + reason);
    }

    char next(size_t ahead = 0) const {
        return at + ahead < text.size() ? text[at + ahead] : '\0';
    }

    void pass_space() {
        at = std::min(text.find_first_not_of(" \t\n\r", at), text.size());
    }

    bool next_is(const std::string & mark) {
        if (text.compare(at, mark.size(), mark) != 0) {
            return false;
        }
        at += mark.size();
        pass_space();
        return true;
    }

    json value(int depth) {
        if (next() == '{' || next() == '[') {
            if (depth == MAX_JSON_DEPTH) {
                fail("nested in more than " + std::to_string(MAX_JSON_DEPTH) + " levels", at);
            }
            return next() == '{' ? object(depth + 1) : list(depth + 1);
        }
        if (next() == '"') {
            return string();
        }
        if (next_is("true")) {
            return true;
        }
        if (next_is("false")) {
            return false;
        }
        return next_is("null") ? json() : number();
    }

    json object(int depth) {
        json found = json::object();
        next_is("{");
        if (next_is("}")) {
            return found;
        }
        while (true) {
            const size_t start = at;
            if (next() != '"') {
                fail("a name in quotes is expected", at);
            }
            const std::string name = string();
            if (found.contains(name)) {
                fail("the name " + kvtuner_quoted(name) + " is there twice", start);
            }
            if (!next_is(":")) {
                fail("':' is expected", at);
            }
            found[name] = value(depth);
            if (next_is("}")) {
                return found;
            }
            if (!next_is(",")) {
                fail("',' or '}' is expected", at);
            }
        }
    }

    json list(int depth) {
        json found = json::array();
        next_is("[");
        if (next_is("]")) {
            return found;
        }
        while (true) {
            found.push_back(value(depth));
            if (next_is("]")) {
                return found;
            }
            if (!next_is(",")) {
                fail("',' or ']' is expected", at);
            }
        }
    }

    // the bytes of the escape at `start`, 0 where it is none
    size_t escape_length(size_t start) const {
        const char kind = start + 1 < text.size() ? text[start + 1] : '\0';
        if (kind != 'u') {
            return kind && std::string("\"\\/bfnrt").find(kind) != std::string::npos ? 2 : 0;
        }
        const size_t end = std::min(start + 6, text.size());
        return text.find_first_not_of("0123456789abcdefABCDEF", start + 2) >= end && end == start + 6 ? 6 : 0;
    }

    // behind the quote that closes the text at `at`
    size_t end_of_string() const {
        for (size_t i = at + 1, n; i < text.size(); i += n) {
            if (text[i] == '"') {
                return i + 1;
            }
            n = text[i] == '\\' ? escape_length(i) : !is_between(text[i], 0x00, 0x1f);
            if (n == 0) {
                break;
            }
        }
        fail("a text is not closed, or holds what must be escaped", at);
    }

    std::string string() {
        const size_t start = at;
        const size_t end = end_of_string();
        try {
            std::string found = json::parse(text.begin() + start, text.begin() + end).get<std::string>();
            at = end;
            pass_space();
            return found;
        } catch (const json::exception &) {
            fail("a text holds half of a surrogate pair", start);
        }
    }

    void pass_digits() {
        while (is_ascii_digit(next())) {
            ++at;
        }
    }

    json number() {
        const size_t start = at;
        at += next() == '-';
        if (!is_ascii_digit(next())) {
            fail("a value is expected", start);
        }
        if (next() == '0') {
            ++at;
        } else {
            pass_digits();
        }
        if (next() == '.' && is_ascii_digit(next(1))) {
            ++at;
            pass_digits();
        }
        const size_t sign = next(1) == '-' || next(1) == '+' ? 1 : 0;
        if ((next() == 'e' || next() == 'E') && is_ascii_digit(next(1 + sign))) {
            at += 1 + sign;
            pass_digits();
        }
        try {
            json found = json::parse(text.begin() + start, text.begin() + at);
            pass_space();
            return found;
        } catch (const json::exception &) {
            fail("a number is too large, of 309 digits or more", start);
        }
    }
};

}  // namespace

json kvtuner_parse_json(const std::string & text) {
    check_utf8(text);
    return json_reader(text).whole();
}

std::string kvtuner_quoted(const std::string & text) {
    std::string shown;
    for (char c : text.substr(0, MAX_QUOTED + 1)) {
        char code[5];
        snprintf(code, sizeof(code), is_between(c, 0x20, 0x7e) ? "%c" : "\\x%02x", (unsigned char)c);
        shown += code;
    }
    return "'" + (shown.size() > MAX_QUOTED ? shown.substr(0, MAX_QUOTED) + "..." : shown) + "'";
}

std::string kvtuner_shown(const json & value) {
    if (value.is_string()) {
        return kvtuner_quoted(value.get<std::string>());
    }
    if (value.is_null()) {
        return "None";
    }
    if (value.is_boolean()) {
        return value.get<bool>() ? "True" : "False";
    }
    if (value.is_number_integer()) {
        return value.dump();
    }
    return value.is_number() ? "a number" : value.is_array() ? "a list" : "an object";
}

const json & kvtuner_member(const json & object, const char * key) {
    static const json absent;
    const auto it = object.is_object() ? object.find(key) : object.end();
    return object.is_object() && it != object.end() ? *it : absent;
}

bool kvtuner_is_count(const json & value) {
    return value.is_number_integer() && value <= MAX_COUNT && value >= 0;
}
