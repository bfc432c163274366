// The blocks of the cache types q2_nl and q3_nl: the one definition for C, C++, CUDA and Metal.
//
// 64 values share one f16 scale d; a code stands for a level, a small integer, and the value is d times it. The levels
// are those of least mean squared error for values with a normal distribution (Lloyd-Max), which rotated keys and
// values nearly have.
//
//   q2_nl  2.25 bits  -10 -3 3 10
//   q3_nl  3.25 bits  -26 -16 -9 -3 3 9 16 26
//
// Value j of a block has its two low bits in qs[j % 16], at bit 2 * (j / 16), and the high bit of q3_nl in qh[j % 8],
// at bit j / 8. So one shift and one mask give 16 codes in order.
#pragma once

#define QK_NL 64

#define KVTUNER_Q2_NL_LEVELS -10, -3, 3, 10
#define KVTUNER_Q3_NL_LEVELS -26, -16, -9, -3, 3, 9, 16, 26

// magnitudes where the next level begins, in units of the scale
#define KVTUNER_Q2_NL_STEPS 6.5f
#define KVTUNER_Q3_NL_STEPS 6.0f, 12.5f, 21.0f

// the scale of values with a root mean square of 1 that the search for the best scale begins with
#define KVTUNER_Q2_NL_START 0.151f
#define KVTUNER_Q3_NL_START 0.0828f

// rounds of that search: codes for the scale, then the scale of least squares for the codes
#define KVTUNER_NL_ROUNDS 2

typedef struct {
    ggml_half d;
    unsigned char qs[QK_NL / 4];
} block_q2_nl;

typedef struct {
    ggml_half d;
    unsigned char qs[QK_NL / 4];
    unsigned char qh[QK_NL / 8];
} block_q3_nl;

#ifdef static_assert
static_assert(sizeof(block_q2_nl) == 18, "wrong q2_nl block size/padding");
static_assert(sizeof(block_q3_nl) == 26, "wrong q3_nl block size/padding");
#endif
