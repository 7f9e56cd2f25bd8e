// Products of int8: the definitions are in int8.py.

#include <memory>

#include "products.h"

namespace {

// Numbers times 127 over their row's largest magnitude, rounded to even. Returns the scale that undoes
// it; it is NaN for a row that holds NaN or infinity.
template <typename T, typename Take> inline float quantize(const T *from, Size width, Take take) {
    Lanes high{}, broken{};
    for (Size c = 0; c < width; c += LANES) {
        Lanes value = load(from + c, width - c), size = value < 0.0f ? -value : value;
        high = size > high ? size : high;
        broken += value - value;
    }
    float largest = 0;
    for (Size lane = 0; lane < LANES; ++lane) largest = std::max(largest, high[lane]);
    float factor = largest > 0 ? 127 / largest : 0;
    const float to_whole = 12582912.0f;  // 1.5 * 2^23: what is added to it loses its fraction
    for (Size c = 0; c < width; c += LANES) {
        Lanes whole = (load(from + c, width - c) * factor + to_whole) - to_whole;
        take(c, __builtin_convertvector(__builtin_convertvector(whole, Whole), Small));
    }
    return largest / 127 + total(broken);
}

template <typename T> void quantize_rows(const T *x, int8_t *out, float *scale, Size rows, Size width) {
#pragma omp parallel for schedule(static)
    for (Size row = 0; row < rows; ++row)
        scale[row] = quantize(x + row * width, width, [&](Size c, Small small) {
            std::memcpy(out + row * width + c, &small, std::min(LANES, width - c));
        });
}

// Sixteen products as numbers: times both scales plus bias, then SiLU where asked for.
template <typename T>
inline void finish(
    Whole whole, float row_scale, const float *column_scale, const T *bias, T *out, Size left, int activation
) {
    Lanes value = __builtin_convertvector(whole, Lanes) * row_scale * load(column_scale, left);
    if (bias) value += load(bias, left);
    store(out, activation ? silu(value) : value, left);
}

template <typename T>
void from_products(
    const int32_t *x, const float *row_scale, const float *column_scale, const T *bias, T *out, Size rows, Size width,
    int activation
) {
#pragma omp parallel for schedule(static)
    for (Size row = 0; row < rows; ++row)
        for (Size c = 0; c < width; c += LANES) {
            Size left = width - c, place = row * width + c;
            Whole whole{};
            std::memcpy(&whole, x + place, std::min(LANES, left) * sizeof(int32_t));
            const T *offset = bias ? bias + c : nullptr;
            finish(whole, row_scale[row], column_scale + c, offset, out + place, left, activation);
        }
}

#ifdef __AVX512VNNI__

constexpr Size QUAD = 4, MIDDLE = 128;

// Rows of the weight as columns, STRIP of them. What they are multiplied with is MIDDLE too large, so that it is not
// negative: `offsets` are MIDDLE times the sums of the columns.
inline void pack_strip(const int8_t *weight, Size columns, Size depth, Size quads, int32_t *to, Whole *offsets) {
    turn_strip([&](Size column) { return weight + column * depth; }, columns, depth, quads, to);
    __m512i sums[2] = {}, middle = _mm512_set1_epi8(char(MIDDLE));
    for (Size i = 0; i < quads; ++i)
        for (Size half = 0; half < 2; ++half)
            sums[half] = _mm512_dpbusd_epi32(sums[half], middle, _mm512_loadu_si512(to + i * STRIP + half * LANES));
    for (Size half = 0; half < 2; ++half) offsets[half] = (Whole)sums[half];
}

// sums[t] = sum_i left[t, i] right[i] for HEIGHT rows, each of so many quads.
inline void multiply_strip(const uint8_t *left, Size quads, const int32_t *right, __m512i sums[HEIGHT][2]) {
    __m512i here[HEIGHT][2];
    for (Size t = 0; t < HEIGHT; ++t) here[t][0] = here[t][1] = _mm512_setzero_si512();
    for (Size i = 0; i < quads; ++i) {
        __m512i first = _mm512_loadu_si512(right + i * STRIP), second = _mm512_loadu_si512(right + i * STRIP + LANES);
#pragma GCC unroll 16
        for (Size t = 0; t < HEIGHT; ++t) {
            int quad;
            std::memcpy(&quad, left + (t * quads + i) * QUAD, sizeof quad);
            __m512i four = _mm512_set1_epi32(quad);
            here[t][0] = _mm512_dpbusd_epi32(here[t][0], four, first);
            here[t][1] = _mm512_dpbusd_epi32(here[t][1], four, second);
        }
    }
    for (Size t = 0; t < HEIGHT; ++t)
        for (Size half = 0; half < 2; ++half) sums[t][half] = here[t][half];
}

// x (rows depth) times the weight (width depth), whose strips are packed as they come: each is read once.
template <typename T>
void int8_linear(
    const T *x, const int8_t *weight, const float *column_scale, const T *bias, T *out, Size rows, Size depth,
    Size width, int activation
) {
    Size quads = padded(depth) / QUAD, tiles = (rows + HEIGHT - 1) / HEIGHT;
    std::unique_ptr<uint8_t[]> whole(new uint8_t[tiles * HEIGHT * quads * QUAD]);
    std::vector<float> row_scale(rows);
#pragma omp parallel
    {
        std::vector<int32_t> strip(quads * STRIP);
#pragma omp for schedule(static)
        for (Size row = 0; row < rows; ++row) {
            uint8_t *to = whole.get() + row * quads * QUAD;
            row_scale[row] = quantize(x + row * depth, depth, [&](Size c, Small small) {
                small ^= int8_t(-MIDDLE);
                std::memcpy(to + c, &small, sizeof small);
            });
        }
#pragma omp for schedule(static)
        for (Size start = 0; start < width; start += STRIP) {
            Whole offsets[2];
            pack_strip(weight + start * depth, std::min(STRIP, width - start), depth, quads, strip.data(), offsets);
            for (Size first = 0; first < rows; first += HEIGHT) {
                __m512i sums[HEIGHT][2];
                multiply_strip(whole.get() + first * quads * QUAD, quads, strip.data(), sums);
                for (Size row = first; row < std::min(first + HEIGHT, rows); ++row)
                    for (Size half = 0; half < 2; ++half) {
                        Size c = start + half * LANES;
                        if (c >= width) break;
                        finish(
                            (Whole)sums[row - first][half] - offsets[half], row_scale[row], column_scale + c,
                            bias ? bias + c : nullptr, out + row * width + c, width - c, activation
                        );
                    }
            }
        }
    }
}

#endif

}  // namespace

extern "C" {

// Whether the processor multiplies int8, so that int8_linear is there.
int lineardit_multiplies_int8() {
#ifdef __AVX512VNNI__
    return 1;
#else
    return 0;
#endif
}

#define INT8(SUFFIX, T)                                                                                               \
    void quantize_rows_##SUFFIX(const T *x, int8_t *out, float *scale, Size rows, Size width) {                       \
        quantize_rows(x, out, scale, rows, width);                                                                    \
    }                                                                                                                 \
    void from_products_##SUFFIX(                                                                                      \
        const int32_t *x, const float *row_scale, const float *column_scale, const T *bias, T *out, Size rows,        \
        Size width, int activation                                                                                    \
    ) {                                                                                                               \
        from_products(x, row_scale, column_scale, bias, out, rows, width, activation);                                \
    }

INT8(f32, float)
INT8(bf16, Bf16)

#ifdef __AVX512VNNI__
#define INT8_LINEAR(SUFFIX, T)                                                                                        \
    void int8_linear_##SUFFIX(                                                                                        \
        const T *x, const int8_t *weight, const float *column_scale, const T *bias, T *out, Size rows, Size depth,    \
        Size width, int activation                                                                                    \
    ) {                                                                                                               \
        int8_linear(x, weight, column_scale, bias, out, rows, depth, width, activation);                              \
    }

INT8_LINEAR(f32, float)
INT8_LINEAR(bf16, Bf16)
#endif

}  // extern "C"
