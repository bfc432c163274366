// Dot products of 64 levels with two blocks of q8_0: one implementation is chosen at compile time. Integers are exact;
// floats are summed in an order of each machine's own, as upstream's dot products are.
#pragma once

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#    include "kvtuner-lowbit-avx512.h"
#elif defined(__AVX2__) && defined(__FMA__)
#    include "kvtuner-lowbit-avx2.h"
#elif defined(__ARM_NEON) && defined(__aarch64__)
#    include "kvtuner-lowbit-neon.h"
#else
#    include "kvtuner-lowbit-portable.h"
#endif
