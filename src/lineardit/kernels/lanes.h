// Vectors of sixteen numbers, products made of them, and the normalisation that passes.cpp and gradients.cpp share.
//
// Vectors are those of GCC and Clang, so that the compiler chooses the instructions of the machine it runs on.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

using Size = int64_t;
constexpr Size LANES = 16;
typedef float Lanes __attribute__((vector_size(64)));
typedef int32_t Whole __attribute__((vector_size(64)));
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef int8_t Small __attribute__((vector_size(16)));

struct Bf16 {
    uint16_t bits;
};

inline Size padded(Size count) { return (count + LANES - 1) / LANES * LANES; }

inline Lanes all(float value) { return value - Lanes{}; }

inline Lanes load(const float *from) {
    Lanes lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

inline Lanes load(const Bf16 *from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return (Lanes)(__builtin_convertvector(halves, Bits) << 16);
}

inline float number(float value) { return value; }

inline float number(Bf16 value) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

inline void store(float *to, Lanes lanes) { std::memcpy(to, &lanes, sizeof lanes); }

// Rounded to the nearest, ties to even.
inline void store(Bf16 *to, Lanes lanes) {
#ifdef __AVX512BF16__
    __m256bh halves = _mm512_cvtneps_pbh((__m512)lanes);
#else
    Bits bits = (Bits)lanes;
    Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    Bits broken = (Bits)(lanes != lanes);
    Halves halves = __builtin_convertvector((broken & 0x7fc0) | (~broken & rounded), Halves);
#endif
    std::memcpy(to, &halves, sizeof halves);
}

// The last lanes of a row whose length is no multiple of 16.
template <typename T> inline Lanes load(const T *from, Size count) {
    if (count >= LANES) return load(from);
    T some[LANES] = {};
    std::memcpy(some, from, count * sizeof(T));
    return load(some);
}

template <typename T> inline void store(T *to, Lanes lanes, Size count) {
    if (count >= LANES) return store(to, lanes);
    T some[LANES];
    store(some, lanes);
    std::memcpy(to, some, count * sizeof(T));
}

inline float total(Lanes lanes) {
    typedef float Eight __attribute__((vector_size(32)));
    typedef float Four __attribute__((vector_size(16)));
    Eight eights[2];
    std::memcpy(eights, &lanes, sizeof lanes);
    eights[0] += eights[1];
    Four fours[2];
    std::memcpy(fours, eights, sizeof fours);
    Four four = fours[0] + fours[1];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

// Sixteen numbers that stand two apart, from the first (0) or the second (1) on.
inline Lanes load_every_other(const Bf16 *from, int second) {
    Bits pairs;
    std::memcpy(&pairs, from, sizeof pairs);
    return (Lanes)(second ? pairs & 0xffff0000u : pairs << 16);
}

inline Lanes load_every_other(const float *from, int second) {
    Lanes lanes;
    for (Size lane = 0; lane < LANES; ++lane) lanes[lane] = from[2 * lane + second];
    return lanes;
}

// Cephes' expf: 2 ^ n times a polynomial, a rounding or two from exact. NaN stays NaN.
inline Lanes exponential(Lanes x) {
    x = x < -87.0f ? all(-87.0f) : x;
    x = x > 88.0f ? all(88.0f) : x;
    const float to_whole = 12582912.0f;  // 1.5 * 2^23: what is added to it loses its fraction
    Lanes n = (x * 1.44269504f + to_whole) - to_whole;
    Lanes r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Lanes p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (Lanes)((__builtin_convertvector(n, Whole) + 127) << 23);
}

// 1 / x, a rounding or two from exact: dividing takes as long as ten products.
inline Lanes reciprocal(Lanes x) {
#ifdef __AVX512F__
    Lanes near = (Lanes)_mm512_rcp14_ps((__m512)x);
    return near * (2.0f - x * near);
#else
    return 1.0f / x;
#endif
}

inline Lanes sigmoid(Lanes x) { return reciprocal(1.0f + exponential(-x)); }

inline Lanes silu(Lanes x) { return x * sigmoid(x); }

inline Lanes features(Lanes x, int map) {
    Lanes above = x > 0.0f ? x : Lanes{};
    if (map == 0) return x != x ? x : above;
    return x > 0.0f ? x + 1.0f : exponential(x);
}

// The first `left` lanes, and `other` beyond.
inline Lanes only(Lanes lanes, Size left, float other) {
    Whole lane{};
    for (Size i = 0; i < LANES; ++i) lane[i] = i;
    return lane < int32_t(left) ? lanes : all(other);
}

// Shares of tokens that add up to one: softmax(scale (scores + offsets)), where there are offsets. What lies up to a vector
// beyond the tokens is read and written, too, as zeros. `held` has room for all of them, and `to` may be the scores.
template <typename H>
inline void softmax(const float *scores, const float *offsets, Size tokens, float scale, float *held, H *to) {
    const float lowest = -std::numeric_limits<float>::infinity();
    Lanes high = all(lowest), sum{};
    for (Size t = 0; t < tokens; t += LANES) {
        Lanes score = load(scores + t);
        if (offsets) score += load(offsets + t);
        score = only(score * scale, tokens - t, lowest);
        store(held + t, score);
        high = score > high ? score : high;
    }
    float highest = high[0];
    for (Size lane = 1; lane < LANES; ++lane) highest = std::max(highest, high[lane]);
    for (Size t = 0; t < tokens; t += LANES) {
        Lanes share = only(exponential(load(held + t) - highest), tokens - t, 0.0f);
        store(held + t, share);
        sum += share;
    }
    float whole = 1 / total(sum);
    for (Size t = 0; t < tokens; t += LANES) store(to + t, load(held + t) * whole);
}

// out[t] = sum_i left[t, i] right[i] for some rows at a time. `right` has rows of `width` numbers, a multiple of
// 16; `left` has rows of `left_stride`.
template <Size ROWS>
inline void multiply(
    const float *left, Size left_stride, Size depth, const float *right, Size width, float *out, Size out_stride
) {
    Size column = 0;
    for (; column + 2 * LANES <= width; column += 2 * LANES) {
        Lanes sums[ROWS][2] = {};
        for (Size i = 0; i < depth; ++i) {
            Lanes first = load(right + i * width + column), second = load(right + i * width + column + LANES);
#pragma GCC unroll 16
            for (Size t = 0; t < ROWS; ++t) {
                float factor = left[t * left_stride + i];
                sums[t][0] += factor * first;
                sums[t][1] += factor * second;
            }
        }
        for (Size t = 0; t < ROWS; ++t)
            for (Size half = 0; half < 2; ++half) store(out + t * out_stride + column + half * LANES, sums[t][half]);
    }
    if (column < width) {
        Lanes sums[ROWS] = {};
        for (Size i = 0; i < depth; ++i) {
            Lanes first = load(right + i * width + column);
#pragma GCC unroll 16
            for (Size t = 0; t < ROWS; ++t) sums[t] += left[t * left_stride + i] * first;
        }
        for (Size t = 0; t < ROWS; ++t) store(out + t * out_stride + column, sums[t]);
    }
}

// One row of a depthwise 3x3 convolution of sixteen channels. `read(dy, column)` is the pixel above, beside or below;
// rows that are not there have no weight, and may be read as any other. Each pixel is read once and goes to the three
// sums that it is part of; `take` gets each column and its sum.
template <typename Read, typename Take>
inline void convolve_row(Size width, const Lanes weight[3][3], Lanes bias, Read read, Take take) {
    Lanes before = bias, here = bias;
    for (Size column = 0; column < width; ++column) {
        Lanes after = bias;
#pragma GCC unroll 3
        for (Size dy = 0; dy < 3; ++dy) {
            Lanes pixel = read(dy, column);
            before += pixel * weight[dy][2];
            here += pixel * weight[dy][1];
            after += pixel * weight[dy][0];
        }
        if (column) take(column - 1, before);
        before = here;
        here = after;
    }
    take(width - 1, before);
}

// Where row (b, head, n) of a tensor starts; its channels lie one beside the other.
struct Strides {
    Size batch, head, token;
};

constexpr Size TOKENS = 64;

// to[i] += sum_t left[t, i] right[t] for TOGETHER i and as many vectors of columns as asked for.
constexpr Size TOGETHER = 8;

template <Size VECTORS>
inline void add_products(const float *left, Size depth, const float *right, Size tokens, float *to, Size width) {
    Lanes sums[TOGETHER][VECTORS];
    for (Size i = 0; i < TOGETHER; ++i)
        for (Size v = 0; v < VECTORS; ++v) sums[i][v] = load(to + i * width + v * LANES);
    for (Size t = 0; t < tokens; ++t) {
        Lanes here[VECTORS];
        for (Size v = 0; v < VECTORS; ++v) here[v] = load(right + t * width + v * LANES);
#pragma GCC unroll 8
        for (Size i = 0; i < TOGETHER; ++i)
            for (Size v = 0; v < VECTORS; ++v) sums[i][v] += left[t * depth + i] * here[v];
    }
    for (Size i = 0; i < TOGETHER; ++i)
        for (Size v = 0; v < VECTORS; ++v) store(to + i * width + v * LANES, sums[i][v]);
}

// The same for all of them; `depth` and `width` are multiples of sixteen.
inline void add_outer(const float *left, Size depth, const float *right, Size tokens, float *to, Size width) {
    for (Size column = 0; column < width; column += 2 * LANES)
        for (Size i = 0; i < depth; i += TOGETHER) {
            auto add = column + LANES < width ? add_products<2> : add_products<1>;
            add(left + i, depth, right + column, tokens, to + i * width + column, width);
        }
}

// sum = x + gate y (or x), out = LayerNorm(sum) (1 + scale) + shift, each where it is asked for. Training keeps the sum (X)
// and the tables (P) in float32 whatever the branches (T) are.
template <typename X, typename T, typename P>
void add_steer(
    const X *x, const T *y, const P *gate, const P *shift, const P *scale, X *sum, T *out, Size rows, Size per_batch,
    Size width, Size table_stride, float eps
) {
#pragma omp parallel
    {
        std::vector<float> held(padded(width));
#pragma omp for schedule(static)
        for (Size row = 0; row < rows; ++row) {
            Size table = row / per_batch * table_stride, place = row * width;
            Lanes mean{};
            for (Size c = 0; c < width; c += LANES) {
                Size left = width - c;
                Lanes value = load(x + place + c, left);
                if (y) {
                    Lanes added = load(y + place + c, left);
                    value += gate ? added * load(gate + table + c, left) : added;
                    if (sum) store(sum + place + c, value, left);
                }
                store(held.data() + c, value);
                mean += value;
            }
            if (!out) continue;
            float middle = total(mean) / width;
            Lanes squares{};
            for (Size c = 0; c < width; c += LANES) {
                Lanes apart = load(held.data() + c) - middle;
                if (width - c < LANES)
                    for (Size lane = width - c; lane < LANES; ++lane) apart[lane] = 0;
                squares += apart * apart;
            }
            float slope = 1 / std::sqrt(total(squares) / width + eps);
            for (Size c = 0; c < width; c += LANES) {
                Size left = width - c;
                Lanes normed = (load(held.data() + c) - middle) * slope;
                store(out + place + c, normed * (1 + load(scale + table + c, left)) + load(shift + table + c, left), left);
            }
        }
    }
}

}  // namespace
