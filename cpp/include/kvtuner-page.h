// What `GET /kv` answers: the plan of the model that runs, as JSON or as a page with its layers coloured by bits.
#pragma once

#include "ggml.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <stdexcept>
#include <string>

inline std::string kvtuner_html(const std::string & text) {
    std::string escaped;
    for (const char c : text) {
        switch (c) {
            case '&':
                escaped += "&amp;";
                break;
            case '<':
                escaped += "&lt;";
                break;
            case '>':
                escaped += "&gt;";
                break;
            case '"':
                escaped += "&quot;";
                break;
            default:
                escaped += c;
        }
    }
    return escaped;
}

// true bits per value of the type that is called so, 0 for none
inline double kvtuner_bits_of(const std::string & name) {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const char * known = ggml_type_name((ggml_type)i);
        if (known && name == known) {
            return 8.0 * ggml_type_size((ggml_type)i) / ggml_blck_size((ggml_type)i);
        }
    }
    return 0;
}

// a cell of a type: few bits are warm and light, many are cold and dark, even in the logarithm from 2 to 16
// the colours are those of kvtuner_gguf/report/html/colours.py, to which tests hold these
inline std::string kvtuner_cell(const std::string & name) {
    static const std::array<double, 3> stops[] = { { 253, 224, 120 }, { 247, 165, 72 }, { 222, 96, 88 },
                                                   { 157, 62, 121 },  { 88, 52, 128 },  { 36, 40, 92 } };
    const double bits = std::min(std::max(kvtuner_bits_of(name), 2.0), 16.0);
    const double at = std::log(bits / 2) / std::log(8) * (std::size(stops) - 1);
    const size_t below = std::min((size_t)at, std::size(stops) - 2);
    int rgb[3];
    for (int i = 0; i < 3; ++i) {
        rgb[i] = (int)std::lround(stops[below][i] + (stops[below + 1][i] - stops[below][i]) * (at - below));
    }
    const bool is_light = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 140;
    char style[64];
    snprintf(style, sizeof(style), "background:#%02x%02x%02x;color:%s", rgb[0], rgb[1], rgb[2],
             is_light ? "#1b1b1f" : "#ffffff");
    return std::string("<td style=\"") + style + "\">" + kvtuner_html(name) + "</td>";
}

// `kv` as of kvtuner_cache_to_json
template <typename json>
std::string kvtuner_page(const json & kv) {
    char size[96];
    snprintf(size, sizeof(size), "%.4f bits per value, %.2f MiB", kv.at("bits_per_value").template get<double>(),
             kv.at("mib").template get<double>());
    const bool has_plan = kv.at("has_plan").template get<bool>();
    const std::string plan = has_plan ? "plan " + kv.at("fingerprint").template get<std::string>() + " from " +
                                                kv.at("source").template get<std::string>()
                                      : std::string("no plan");
    std::string page =
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
            "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>KV cache</title>"
            "<style>:root{color-scheme:light dark}body{font:14px/1.5 system-ui,sans-serif;margin:16px}"
            "p{overflow-wrap:anywhere}table{border-spacing:2px}td,th{padding:1px 10px;border-radius:3px}</style></head>"
            "<body><h1>KV cache</h1><p>" +
            kvtuner_html(plan) + "</p><p>" + size + "</p><table><tr><th>layer</th><th>K</th><th>V</th><th></th></tr>\n";
    for (const json & layer : kv.at("layers")) {
        std::string marks;
        for (const auto & [key, word] : { std::pair{ "center_k", "centered" }, std::pair{ "scale_k", "scaled" },
                                          std::pair{ "exact_ends", "exact ends" } }) {
            if (layer.at(key).template get<bool>()) {
                marks += (marks.empty() ? "" : ", ") + std::string(word);
            }
        }
        page += "<tr><td>" + std::to_string(layer.at("layer").template get<int>()) + "</td>" +
                kvtuner_cell(layer.at("k").template get<std::string>()) +
                kvtuner_cell(layer.at("v").template get<std::string>()) + "<td>" + marks + "</td></tr>\n";
    }
    return page + "</table></body></html>\n";
}

inline std::string kvtuner_lower(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return (char)std::tolower(c); });
    return text;
}

// whether a request wants JSON: ?format=json, or else an Accept that names it and not HTML, as a browser's does
template <typename request>
bool kvtuner_wants_json(const request & req) {
    const std::string format = req.get_param("format");
    if (format != "" && format != "json" && format != "html") {
        throw std::invalid_argument("unknown format: use json or html");
    }
    std::string accept;
    for (const auto & [name, value] : req.headers) {
        accept += kvtuner_lower(name) == "accept" ? kvtuner_lower(value) : "";
    }
    const bool by_header =
            accept.find("application/json") != std::string::npos && accept.find("text/html") == std::string::npos;
    return format == "" ? by_header : format == "json";
}

// the handler of `GET /kv`, from that of `GET /props`, which also answers while the server sleeps
template <typename json, typename handler>
handler kvtuner_kv_handler(handler props) {
    return [props](const auto & req) {
        const bool as_json = kvtuner_wants_json(req);
        auto res = props(req);
        if (res->is_stream() || res->status != 200) {  // what a model behind a router answers, or an error
            return res;
        }
        const json told = json::parse(res->data);
        if (!told.contains("kv_cache")) {
            throw std::invalid_argument("a router has no KV cache of its own: name a model, as in /kv?model=NAME");
        }
        res->data = as_json ? told.at("kv_cache").dump() : kvtuner_page(told.at("kv_cache"));
        res->content_type = as_json ? "application/json; charset=utf-8" : "text/html; charset=utf-8";
        return res;
    };
}
