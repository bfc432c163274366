// Blocks of cached keys and values as the parts of matrices that a lane of a warp has, without a step between.
//
// Thirty-two values are two products of sixteen. In which order a product takes them does not matter as long as both
// factors have the same, so that of the codes in a block is taken: lane t of four has values 4t to 4t + 3 and those 16
// behind, which in most types are one word. For values, where tokens are summed, lane g of eight has 2g, 2g + 1 and
// those 16 behind of two tokens.
#pragma once

#include "ggml-cuda/common.cuh"
#include "kvtuner-cuda-warp.cuh"

#include "kvtuner-quantize.h"

namespace kvtuner::cuda {

constexpr int AT_ONCE = 32;  // values

inline __device__ uint32_t load_16(const char * p) {
    return *(const uint16_t *)p;
}

// WORDS: that the base is aligned to 4 bytes
template <bool WORDS>
__device__ uint32_t load_32(const char * base, const int offset) {
    if (WORDS && offset % 4 == 0) {
        return *(const uint32_t *)(base + offset);
    }
    return load_16(base + offset) | load_16(base + offset + 2) << 16;
}

// 16 bits of each of two tokens
inline __device__ uint32_t load_both(const char * a, const char * b) {
    return load_16(a) | load_16(b) << 16;
}

// How integers from 0 to 1023 become halves. As they are, they are denormal halves of n / 2^24, which tensor cores
// take: what is to be taken off each is taken off the sums. IN_PLACE: those of the last 16 of 32 values may be `HIGH`
// times too large, which saves to move them. With 0x6400 in front they are 1024 + n, and it is taken off here.
enum class form { RAW, IN_PLACE, EXACT };

template <form FORM>
constexpr uint32_t FRONT = FORM == form::EXACT ? 0x64006400 : 0;

template <form FORM, int OFFSET>
__device__ pair numbers_of(const uint32_t with_front) {
    if constexpr (FORM != form::EXACT) {
        return with_front;
    }
    return as_pair(__hsub2(as_half2(with_front), as_half2(FRONT<form::EXACT> + OFFSET * 0x00010001u)));
}

// bytes that are integers + 128: of x those named by `which`, with the front above each
template <form FORM>
__device__ pair numbers_of_bytes(const uint32_t x, const uint32_t which) {
    return numbers_of<FORM, 128>(bytes_of(x, FRONT<FORM> >> 8, which));
}

constexpr uint32_t FIRST_TWO = 0x4140, LAST_TWO = 0x4342;

// four bytes, integers + 128: bytes 0 and 2, 1 and 3
template <form FORM>
__device__ void split_bytes(const uint32_t x, pair & even, pair & odd) {
    even = numbers_of_bytes<FORM>(x, 0x4240);
    odd = numbers_of_bytes<FORM>(x, 0x4341);
}

// levels of a table as bytes, + 128
template <int N>
struct byte_table {
    uint32_t words[N / 4];
};

template <int N, typename LEVEL, int N_LEVELS>
__host__ __device__ constexpr byte_table<N> table_of(const LEVEL (&levels)[N_LEVELS]) {
    byte_table<N> table = {};
    for (int i = 0; i < N_LEVELS; ++i) {
        table.words[i / 4] |= (uint32_t)((int)levels[i] + 128) << i % 4 * 8;
    }
    return table;
}

// Bytes found for the eight nibbles of a word, low ones first: those of its lower half in `low`. Nibbles of bytes 0 and
// 2, then 1 and 3, the low ones or the high ones.
template <form FORM>
__device__ void pick(const uint32_t low, const uint32_t high, const bool is_high, pair & even, pair & odd) {
    even = numbers_of_bytes<FORM>(bytes_of(low, high, 0x5140), is_high ? LAST_TWO : FIRST_TWO);
    odd = numbers_of_bytes<FORM>(bytes_of(low, high, 0x7362), is_high ? LAST_TWO : FIRST_TWO);
}

// OFFSET: what the codes, or the bytes found for them, are more than the levels. (The host's plan knows it, too.)
//
// What a lane has of values 32 * `part` to 32 * part + 31 of a block: [even, odd] of the first 16 and of the last 16.
// `codes` and `more` are bits of four values, or of eight or sixteen, a byte apart.
template <ggml_type T>
struct cached;

template <>
struct cached<GGML_TYPE_F16> {
    static constexpr int SIZE = 32, BYTES = 64, AT = 0, OFFSET = 0;
    static constexpr bool HAS_SCALE = false;
};

template <>
struct cached<GGML_TYPE_Q8_0> {
    static constexpr int SIZE = 32, BYTES = 34, AT = 2, OFFSET = 128;
    static constexpr bool HAS_SCALE = true;
};

// the four bits of values: of bytes 0 and 2, 1 and 3, the low ones and then the high ones
template <form FORM>
__device__ uint32_t nibbles_of(const uint32_t codes, const int i, const uint32_t or_with) {
    if (FORM == form::IN_PLACE && i >= 2) {
        return masked_or(codes >> i % 2 * 8, 0x00f000f0, or_with);
    }
    return masked_or(codes >> (i % 2 * 8 + i / 2 * 4), 0x000f000f, or_with);
}

template <>
struct cached<GGML_TYPE_Q4_0> {
    static constexpr int SIZE = 32, BYTES = 18, AT = 2, MORE_AT = -1, OFFSET = 8;
    static constexpr bool HAS_SCALE = true;

    template <form FORM>
    static __device__ void expand(const uint32_t codes, uint32_t, int, pair (&r)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            r[i] = numbers_of<FORM, OFFSET>(nibbles_of<FORM>(codes, i, FRONT<FORM>));
        }
    }
};

template <>
struct cached<GGML_TYPE_Q5_0> {
    static constexpr int SIZE = 32, BYTES = 22, AT = 6, MORE_AT = 2, OFFSET = 16;
    static constexpr bool HAS_SCALE = true;

    // bits 0 to 3 and 16 to 19 of `more`: two of them, 2 apart, go to bits 4 and 20, or with codes in place 8 and 24
    template <form FORM>
    static __device__ void expand(const uint32_t codes, const uint32_t more, int, pair (&r)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int shift = FORM == form::IN_PLACE && i >= 2 ? 4 : 0;
            const uint32_t two = more >> (i % 2 + i / 2 * 16) & 5;
            const uint32_t fifth = masked_or(two * (0x40010u << shift), 0x00100010u << shift, FRONT<FORM>);
            r[i] = numbers_of<FORM, OFFSET>(nibbles_of<FORM>(codes, i, fifth));
        }
    }

    static __device__ uint32_t more_of_key(const char * head, const int at, const int t) {
        return (load_16(head + at) | load_16(head + at + 2) << 16) >> 4 * t;
    }

    static __device__ uint32_t more_of_values(const char * a, const char * b, const int g) {
        const uint32_t first = load_both(a, b) >> 2 * g & 0x00030003,
                       last = load_both(a + 2, b + 2) >> 2 * g & 0x00030003;
        return (first & 3) | first >> 14 | (last & 3) << 16 | (last >> 14) << 16;
    }
};

template <>
struct cached<GGML_TYPE_IQ4_NL> {
    static constexpr int SIZE = 32, BYTES = 18, AT = 2, MORE_AT = -1, OFFSET = 128;
    static constexpr bool HAS_SCALE = true;
    static constexpr signed char LEVELS[] = {
        -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113
    };

    // of the four nibbles below: among the first eight levels, among the last eight, and then which of both
    static __device__ uint32_t bytes_for(const uint32_t codes) {
        constexpr byte_table<16> table = table_of<16>(LEVELS);
        const uint32_t first = bytes_of(table.words[0], table.words[1], codes & 0x7777);
        const uint32_t last = bytes_of(table.words[2], table.words[3], codes & 0x7777);
        return bytes_of(first, last, (codes >> 1 & 0x4444) | 0x3210);
    }

    template <form FORM>
    static __device__ void expand(const uint32_t codes, uint32_t, int, pair (&r)[4]) {
        const uint32_t low = bytes_for(codes), high = bytes_for(codes >> 16);
        pick<FORM>(low, high, false, r[0], r[1]);
        pick<FORM>(low, high, true, r[2], r[3]);
    }
};

// four codes of two bits a byte, and perhaps a third bit each
template <typename BLOCK>
struct cached_nl {
    static constexpr int SIZE = QK_NL, BYTES = sizeof(BLOCK), AT = 2, OFFSET = 128;
    static constexpr bool HAS_SCALE = true;

    static __device__ uint32_t bytes_for(const uint32_t codes) {
        constexpr byte_table<8> table = table_of<8>(low_bit<BLOCK>::LEVELS);
        return bytes_of(table.words[0], table.words[1], codes);
    }

    // values 0 to 15 and 32 to 47 of a byte's nibbles, then 16 to 31 and 48 to 63
    template <form FORM>
    static __device__ void expand(const uint32_t codes, const uint32_t more, const int part, pair (&r)[4]) {
        const uint32_t first = (codes & 0x33333333) | (more << 2 & 0x44444444);
        const uint32_t second = (codes >> 2 & 0x33333333) | (more & 0x44444444);
        pick<FORM>(bytes_for(first), bytes_for(first >> 16), part == 1, r[0], r[1]);
        pick<FORM>(bytes_for(second), bytes_for(second >> 16), part == 1, r[2], r[3]);
    }
};

template <>
struct cached<GGML_TYPE_Q2_NL> : cached_nl<block_q2_nl> {
    static constexpr int MORE_AT = -1;
};

template <>
struct cached<GGML_TYPE_Q3_NL> : cached_nl<block_q3_nl> {
    static constexpr int MORE_AT = 18;

    static __device__ uint32_t more_of_key(const char * head, const int at, const int t) {
        const char * bits = head + at + 4 * (t % 2);
        return (load_16(bits) | load_16(bits + 2) << 16) >> t / 2;
    }

    static __device__ uint32_t more_of_values(const char * a, const char * b, const int g) {
        return load_both(a + 2 * (g % 4), b + 2 * (g % 4)) >> g / 4;
    }
};

// Values 32 * i to 32 * i + 31 of a key, whose head begins there, as lane t has them, without the scale. RAW: n / 2^24,
// of which `OFFSET` is not taken off; halves are themselves in any form.
template <ggml_type T, bool WORDS, form FORM>
__device__ void key_part(const char * head, const int i, const int t, pair (&r)[4]) {
    using type = cached<T>;
    const int at = i * AT_ONCE / type::SIZE * type::BYTES;
    const char * mine = head + 4 * t;
    if constexpr (T == GGML_TYPE_F16) {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            const uint2 x = *(const uint2 *)(head + at + 8 * t + 32 * k);
            r[2 * k] = bytes_of(x.x, x.y, 0x5410);
            r[2 * k + 1] = bytes_of(x.x, x.y, 0x7632);
        }
    } else if constexpr (T == GGML_TYPE_Q8_0) {
        split_bytes<FORM>(load_32<WORDS>(mine, at + type::AT) ^ 0x80808080, r[0], r[1]);
        split_bytes<FORM>(load_32<WORDS>(mine, at + type::AT + 16) ^ 0x80808080, r[2], r[3]);
    } else if constexpr (type::MORE_AT < 0) {
        type::template expand<FORM>(load_32<WORDS>(mine, at + type::AT), 0, i % (type::SIZE / AT_ONCE), r);
    } else {
        type::template expand<FORM>(load_32<WORDS>(mine, at + type::AT), type::more_of_key(head, at + type::MORE_AT, t),
                                    i % (type::SIZE / AT_ONCE), r);
    }
}

// values 32 * i to 32 * i + 31 of the heads of two tokens, as lane g has them
template <ggml_type T, form FORM>
__device__ void value_part(const char * a, const char * b, const int i, const int g, pair (&r)[4]) {
    using type = cached<T>;
    const int at = i * AT_ONCE / type::SIZE * type::BYTES;
    if constexpr (T == GGML_TYPE_F16) {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            const uint32_t x = *(const uint32_t *)(a + at + 4 * g + 32 * k);
            const uint32_t y = *(const uint32_t *)(b + at + 4 * g + 32 * k);
            r[2 * k] = bytes_of(x, y, 0x5410);
            r[2 * k + 1] = bytes_of(x, y, 0x7632);
        }
    } else if constexpr (T == GGML_TYPE_Q8_0) {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            const int mine = at + type::AT + 2 * g + 16 * k;
            split_bytes<FORM>(load_both(a + mine, b + mine) ^ 0x80808080, r[2 * k], r[2 * k + 1]);
        }
    } else {
        const int mine = at + type::AT + 2 * g;
        uint32_t more = 0;
        if constexpr (type::MORE_AT >= 0) {
            more = type::more_of_values(a + at + type::MORE_AT, b + at + type::MORE_AT, g);
        }
        type::template expand<FORM>(load_both(a + mine, b + mine), more, i % (type::SIZE / AT_ONCE), r);
    }
}

}  // namespace kvtuner::cuda
