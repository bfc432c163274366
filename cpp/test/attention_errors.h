// Errors of cases of attention on other devices than the CPU, against the plain loop.
#pragma once

#include "attention_expected.h"

struct attention_errors {
    static constexpr double MOST = 5e-4;  // normalized mean squared: the bar of upstream's own tests
    static constexpr double USUAL = 2e-6;

    int n_cases = 0, n_failed = 0;

    // Counts a case and gives its error, of which a line tells where it is not usual.
    double check(const attention_case & c, const std::vector<float> & got, const std::string & text,
                 std::mt19937 & random) {
        const double error = error_of(c, got, random);
        ++n_cases;
        if (!(error <= USUAL)) {
            printf("%s error %.2e: %s\n", error <= MOST ? "note" : "FAIL", error, text.c_str());
        }
        n_failed += !(error <= MOST);
        return error;
    }
};
