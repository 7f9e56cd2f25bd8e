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
inline void multiply_strip(
    const Bf16 *left, Size left_stride, Size depth, const Bf16 *right, float *out, Size out_stride = STRIP
) {
    __m512 sums[HEIGHT][2];
    for (Size t = 0; t < HEIGHT; ++t) sums[t][0] = sums[t][1] = _mm512_setzero_ps();
    for (Size i = 0; i < depth; i += 2) {
        const Bf16 *pairs = right + i * STRIP;
        __m512bh first = (__m512bh)_mm512_loadu_si512(pairs), second = (__m512bh)_mm512_loadu_si512(pairs + 2 * LANES);
#pragma GCC unroll 16
        for (Size t = 0; t < HEIGHT; ++t) {
            int pair;
            std::memcpy(&pair, left + t * left_stride + i, sizeof pair);
            __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
            sums[t][0] = _mm512_dpbf16_ps(sums[t][0], both, first);
            sums[t][1] = _mm512_dpbf16_ps(sums[t][1], both, second);
        }
    }
    for (Size t = 0; t < HEIGHT; ++t)
        for (Size half = 0; half < 2; ++half) _mm512_storeu_ps(out + t * out_stride + half * LANES, sums[t][half]);
}
#endif

inline void multiply_strip(
    const float *left, Size left_stride, Size depth, const float *right, float *out, Size out_stride = STRIP
) {
    multiply<HEIGHT>(left, left_stride, depth, right, STRIP, out, out_stride);
}

inline Size strips_of(Size columns) { return (columns + STRIP - 1) / STRIP; }

// A matrix is packed in strips of columns, each from the first to the last row, padded to `deep`. Numbers that are
// multiplied together, PAIR of them from rows one below the other, are one beside the other.
template <Size PAIR> inline Size packed_place(Size row, Size column, Size deep) {
    return (column / STRIP * deep + row / PAIR * PAIR) * STRIP + column % STRIP * PAIR + row % PAIR;
}

inline float plain(float value, float) { return value; }
inline float plain(Bf16 value, float) { return number(value); }
inline Bf16 plain(Bf16 value, Bf16) { return value; }

#ifdef __AVX512F__
// A matrix of 16 x 16 with its rows as columns.
inline void turn(__m512i rows[LANES]) {
#pragma GCC unroll 4
    for (int step = 1; step < LANES; step *= 2) {
        Whole first, second;
        for (int lane = 0; lane < LANES; ++lane) {
            first[lane] = lane & step ? LANES + lane - step : lane;
            second[lane] = lane & step ? LANES + lane : lane + step;
        }
#pragma GCC unroll 16
        for (int row = 0; row < LANES; ++row) {
            if (row & step) continue;
            __m512i one = rows[row], other = rows[row + step];
            rows[row] = _mm512_permutex2var_epi32(one, (__m512i)first, other);
            rows[row + step] = _mm512_permutex2var_epi32(one, (__m512i)second, other);
        }
    }
}

// to[i * STRIP + column] = the i-th four bytes of row `column`; zeros beyond `columns`, up to STRIP, and beyond `bytes`.
template <typename Row>
inline void turn_strip(Row row, Size columns, Size bytes, Size fours, int32_t *to) {
    for (Size first = 0; first < STRIP; first += LANES)
        for (Size i = 0; i < fours; i += LANES) {
            __m512i numbers[LANES] = {};
            Size left = bytes - 4 * i;
            for (Size column = first; column < std::min(first + LANES, columns); ++column) {
                const char *from = reinterpret_cast<const char *>(row(column)) + 4 * i;
                if (left >= 4 * LANES)
                    numbers[column - first] = _mm512_loadu_si512(from);
                else if (left > 0)
                    std::memcpy(&numbers[column - first], from, left);
            }
            turn(numbers);
            for (Size r = 0; r < std::min(LANES, fours - i); ++r)
                _mm512_storeu_si512(to + (i + r) * STRIP + first, numbers[r]);
        }
}
#endif

// Packs strip `strip` of a matrix (depth columns), of which `row(column)` is where a column lies.
template <typename T, typename Row>
inline void pack_columns(Row row, Size strip, Size columns, Size depth, typename Factor<T>::Type *to) {
    using H = typename Factor<T>::Type;
    constexpr Size PAIR = Factor<T>::PAIR;
    Size deep = padded(depth), start = strip * STRIP;
#ifdef __AVX512F__
    if (sizeof(H) == sizeof(T)) {
        auto from = [&](Size column) { return row(start + column); };
        int32_t *place = reinterpret_cast<int32_t *>(to + start * deep);
        return turn_strip(from, columns - start, depth * Size(sizeof(T)), deep / PAIR, place);
    }
#endif
    for (Size column = start; column < start + STRIP; ++column)
        for (Size r = 0; r < deep; ++r) {
            T value = column < columns && r < depth ? row(column)[r] : T{};
            to[packed_place<PAIR>(r, column, deep)] = plain(value, H{});
        }
}

// The same of a matrix whose rows lie at `row(r)`; all of its strips.
template <typename T, typename Row>
inline void pack_rows(Row row, Size columns, Size depth, typename Factor<T>::Type *to) {
    using H = typename Factor<T>::Type;
    constexpr Size PAIR = Factor<T>::PAIR;
    Size deep = padded(depth);
    const T none[LANES] = {};
    for (Size r = 0; r < deep; r += PAIR)
        for (Size column = 0; column < strips_of(columns) * STRIP; column += LANES) {
            Size left = columns - column;
            H *place = to + packed_place<PAIR>(r, column, deep), some[PAIR][LANES];
            for (Size p = 0; p < PAIR; ++p) {
                bool there = r + p < depth && left > 0;
                store(some[p], there ? load(row(r + p) + column, left) : load(none));
            }
            for (Size lane = 0; lane < LANES; ++lane)
                for (Size p = 0; p < PAIR; ++p) place[lane * PAIR + p] = some[p][lane];
        }
}

}  // namespace
