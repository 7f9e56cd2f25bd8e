// Products of rows with a matrix that is packed for them, which convolution.cpp and prompt.cpp share.

#pragma once

#include "lanes.h"

namespace {

// Rows, and columns of the matrix, whose sums fit the registers.
#ifdef __AVX512F__
constexpr Size HEIGHT = 12, STRIP = 2 * LANES;
#else
constexpr Size HEIGHT = 6, STRIP = LANES;
#endif
// What one thread's rows may take of its cache.
constexpr Size CACHE = 400 * 1024;

// Where numbers of type T are multiplied as they are, and in pairs.
template <typename T> struct Factor {
    using Type = float;
    static constexpr Size PAIR = 1;
};
#ifdef __AVX512BF16__
template <> struct Factor<Bf16> {
    using Type = Bf16;
    static constexpr Size PAIR = 2;
};

// out[t] = sum_i left[t, i] right[i] for HEIGHT rows; `right` has rows i and i + 1 number by number.
inline void multiply_strip(const Bf16 *left, Size depth, const Bf16 *right, float *out, Size out_stride = STRIP) {
    __m512 sums[HEIGHT][2];
    for (Size t = 0; t < HEIGHT; ++t) sums[t][0] = sums[t][1] = _mm512_setzero_ps();
    for (Size i = 0; i < depth; i += 2) {
        const Bf16 *pairs = right + i * STRIP;
        __m512bh first = (__m512bh)_mm512_loadu_si512(pairs), second = (__m512bh)_mm512_loadu_si512(pairs + 2 * LANES);
#pragma GCC unroll 16
        for (Size t = 0; t < HEIGHT; ++t) {
            int pair;
            std::memcpy(&pair, left + t * depth + i, sizeof pair);
            __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
            sums[t][0] = _mm512_dpbf16_ps(sums[t][0], both, first);
            sums[t][1] = _mm512_dpbf16_ps(sums[t][1], both, second);
        }
    }
    for (Size t = 0; t < HEIGHT; ++t)
        for (Size half = 0; half < 2; ++half) _mm512_storeu_ps(out + t * out_stride + half * LANES, sums[t][half]);
}
#endif

inline void multiply_strip(const float *left, Size depth, const float *right, float *out, Size out_stride = STRIP) {
    multiply<HEIGHT>(left, depth, depth, right, STRIP, out, out_stride);
}

// Strips of columns, each from the first to the last of `depth` rows: where number (row, column) of the matrix lies.
template <Size PAIR> inline Size packed_place(Size row, Size column, Size depth) {
    return (column / STRIP * depth + row / PAIR * PAIR) * STRIP + column % STRIP * PAIR + row % PAIR;
}

inline Size strips_of(Size columns) { return (columns + STRIP - 1) / STRIP; }

}  // namespace
