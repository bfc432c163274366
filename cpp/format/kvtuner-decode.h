// What a block says of one value: the reference that every back end is tested against, bit for bit. In the common
// subset of C++, CUDA and Metal, which defines KVTUNER_FN and KVTUNER_IN (an address space) before.
#pragma once

#include "kvtuner-blocks.h"

#ifndef KVTUNER_FN
#    define KVTUNER_FN inline
#endif
#ifndef KVTUNER_IN
#    define KVTUNER_IN
#endif

// The level of value j of a block, a small integer: the value is d times it, plus m where the block has one.

KVTUNER_FN int kvtuner_level(KVTUNER_IN const block_q8_0 & x, int j) {
    return x.qs[j];
}

// four bits: the first half of the values in the low bits
KVTUNER_FN int kvtuner_four_bits(KVTUNER_IN const unsigned char * qs, int j) {
    return j < 16 ? qs[j] & 15 : qs[j - 16] >> 4;
}

KVTUNER_FN int kvtuner_fifth_bit(KVTUNER_IN const unsigned char * qh, int j) {
    return (qh[j / 8] >> j % 8 & 1) << 4;
}

KVTUNER_FN int kvtuner_level(KVTUNER_IN const block_q4_0 & x, int j) {
    return kvtuner_four_bits(x.qs, j) - 8;
}

KVTUNER_FN int kvtuner_level(KVTUNER_IN const block_q4_1 & x, int j) {
    return kvtuner_four_bits(x.qs, j);
}

KVTUNER_FN int kvtuner_level(KVTUNER_IN const block_q5_0 & x, int j) {
    return (kvtuner_four_bits(x.qs, j) | kvtuner_fifth_bit(x.qh, j)) - 16;
}

KVTUNER_FN int kvtuner_level(KVTUNER_IN const block_q5_1 & x, int j) {
    return kvtuner_four_bits(x.qs, j) | kvtuner_fifth_bit(x.qh, j);
}

KVTUNER_FN int kvtuner_level(KVTUNER_IN const block_iq4_nl & x, int j) {
    return kvalues_iq4nl[kvtuner_four_bits(x.qs, j)];
}

KVTUNER_FN int kvtuner_two_bits(KVTUNER_IN const unsigned char * qs, int j) {
    return qs[j % 16] >> 2 * (j / 16) & 3;
}

KVTUNER_FN int kvtuner_level(KVTUNER_IN const block_q2_nl & x, int j) {
    const signed char levels[] = { KVTUNER_Q2_NL_LEVELS };
    return levels[kvtuner_two_bits(x.qs, j)];
}

KVTUNER_FN int kvtuner_level(KVTUNER_IN const block_q3_nl & x, int j) {
    const signed char levels[] = { KVTUNER_Q3_NL_LEVELS };
    return levels[kvtuner_two_bits(x.qs, j) | (x.qh[j % 8] >> j / 8 & 1) << 2];
}
