// Rows that a kernel may get wrong: zeros of both signs, denormals, numbers near both ends of the range and of the
// steps between levels, few values among zeros. None is no number.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

inline std::vector<float> normal_values(int64_t n, std::mt19937 & random) {
    std::normal_distribution<float> normal;
    std::vector<float> values(n);
    for (float & value : values) {
        value = normal(random) * (random() % 16 == 0 ? 20 : 1);
    }
    return values;
}

// n values of each kind, by name
inline std::vector<std::pair<std::string, std::vector<float>>> hostile_rows(int64_t n, std::mt19937 & random) {
    std::vector<std::pair<std::string, std::vector<float>>> rows;
    const auto add = [&](const char * name, auto value_of) {
        std::vector<float> values = normal_values(n, random);
        for (float & value : values) {
            value = value_of(value);
        }
        rows.emplace_back(name, values);
    };
    add("normal values", [](float x) { return x; });
    add("zeros", [](float) { return 0.0f; });
    add("zeros of both signs", [](float x) { return std::copysign(0.0f, x); });
    add("denormals", [](float x) { return x * 1e-40f; });
    add("the smallest denormals", [](float x) { return std::copysign(FLT_TRUE_MIN, x); });
    add("values around the smallest normal one", [](float x) { return x * FLT_MIN; });
    add("values whose squares are denormal", [](float x) { return x * 1e-21f; });
    add("values whose scale is denormal in half precision", [](float x) { return x * 1e-5f; });
    add("values whose squares are infinite", [](float x) { return x * 1e20f; });
    add("the largest values", [](float x) { return std::copysign(FLT_MAX, x); });
    add("values of every size", [&](float x) { return std::ldexp(x, (int)(random() % 250) - 140); });
    add("few values among zeros", [&](float x) { return random() % 32 == 0 ? x : std::copysign(0.0f, x); });
    add("one size", [](float x) { return std::copysign(1.5f, x); });
    add("small integers", [](float x) { return std::round(2 * x); });
    add("steps between levels", [&](float x) {
        const float steps[] = { 6.5f, 6.0f, 12.5f, 21.0f, 3.0f, 26.0f };
        return std::copysign(steps[random() % 6] * 0.03125f, x);
    });
    return rows;
}
