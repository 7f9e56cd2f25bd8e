// Softmax attention to a prompt that was multiplied into the layers around it; the definition is in prompt.py.
//
// One thread takes some tokens all the way, from the picture's to those that go back, so that neither scores nor shares
// leave its cache.

#include <limits>
#include <omp.h>

#include "products.h"

namespace {

inline void convert(float value, float *to) { *to = value; }
inline void convert(Bf16 value, Bf16 *to) { *to = value; }
inline void convert(Bf16 value, float *to) { *to = number(value); }

// A matrix (depth columns) in strips; it lies row by row, or `turned`, column by column.
template <typename T>
void pack(const T *from, Size columns, Size depth, typename Factor<T>::Type *to, int turned) {
    Size deep = padded(depth);
#pragma omp parallel for schedule(static)
    for (Size strip = 0; strip < strips_of(columns); ++strip)
        for (Size column = strip * STRIP; column < (strip + 1) * STRIP; ++column)
            for (Size row = 0; row < deep; ++row) {
                bool there = column < columns && row < depth;
                T value = there ? from[turned ? column * depth + row : row * columns + column] : T{};
                convert(value, to + packed_place<Factor<T>::PAIR>(row, column, deep));
            }
}

// The first `left` lanes, and `other` beyond.
inline Lanes only(Lanes lanes, Size left, float other) {
    Whole lane{};
    for (Size i = 0; i < LANES; ++i) lane[i] = i;
    return lane < int32_t(left) ? lanes : all(other);
}

// Shares of the tokens in one head of one row: softmax(scale (scores + offsets)). What lies up to a vector beyond the
// tokens is read and written, too, as zeros.
template <typename H>
inline void share(const float *scores, const float *offsets, Size tokens, float scale, float *held, H *to) {
    const float lowest = -std::numeric_limits<float>::infinity();
    Lanes high = all(lowest), sum{};
    for (Size t = 0; t < tokens; t += LANES) {
        Lanes score = only((load(scores + t) + load(offsets + t)) * scale, tokens - t, lowest);
        store(held + t, score);
        high = score > high ? score : high;
    }
    float highest = high[0];
    for (Size lane = 1; lane < LANES; ++lane) highest = std::max(highest, high[lane]);
    for (Size t = 0; t < tokens; t += LANES) {
        Lanes weight = only(exponential(load(held + t) - highest), tokens - t, 0.0f);
        store(held + t, weight);
        sum += weight;
    }
    float slope = 1 / total(sum);
    for (Size t = 0; t < tokens; t += LANES) store(to + t, load(held + t) * slope);
}

// x (count channels), rows `stride` apart, to out (count channels). Keys are packed (channels, heads tokens), values
// (heads tokens, channels).
template <typename T>
void attend_prompt(
    const T *x, const typename Factor<T>::Type *keys, const float *offsets, const typename Factor<T>::Type *values,
    const T *bias, T *out, Size count, Size channels, Size heads, Size tokens, float scale
) {
    using H = typename Factor<T>::Type;
    Size columns = heads * tokens, deep = padded(channels), middle = padded(columns), wide = strips_of(columns) * STRIP;
    Size tiles = (count + HEIGHT - 1) / HEIGHT;
    Size row_bytes = (deep + middle) * Size(sizeof(H)) + wide * Size(sizeof(float));
    Size fitting = std::max<Size>(1, CACHE / row_bytes / HEIGHT);
#pragma omp parallel
    {
        // As many rows for every thread, in blocks of one length.
        Size threads = omp_get_num_threads(), thread = omp_get_thread_num();
        Size start = tiles * thread / threads, end = tiles * (thread + 1) / threads;
        Size blocks = (end - start + fitting - 1) / fitting, most = blocks ? (end - start + blocks - 1) / blocks : 0;
        std::vector<H> rows(most * HEIGHT * deep), shares(most * HEIGHT * middle + LANES);
        std::vector<float> scores(most * HEIGHT * wide + LANES), held(padded(tokens)), sums(HEIGHT * STRIP);
        for (Size first = start * HEIGHT; first < end * HEIGHT; first += most * HEIGHT) {
            Size length = std::min(most * HEIGHT, end * HEIGHT - first), here = std::min(length, count - first);
            for (Size t = 0; t < length; ++t)
                for (Size c = 0; c < deep; c += LANES)
                    store(
                        rows.data() + t * deep + c,
                        t < here && c < channels ? load(x + (first + t) * channels + c, channels - c) : Lanes{}
                    );
            for (Size strip = 0; strip < wide / STRIP; ++strip)
                for (Size t = 0; t < length; t += HEIGHT)
                    multiply_strip(
                        rows.data() + t * deep, deep, keys + strip * deep * STRIP,
                        scores.data() + t * wide + strip * STRIP, wide
                    );
            for (Size t = 0; t < length; ++t) {
                H *to = shares.data() + t * middle;
                for (Size head = 0; head < heads; ++head) {
                    Size place = head * tokens;
                    share(scores.data() + t * wide + place, offsets + place, tokens, scale, held.data(), to + place);
                }
                std::fill(to + columns, to + middle, H{});
            }
            for (Size strip = 0; strip < strips_of(channels); ++strip)
                for (Size t = 0; t < here; t += HEIGHT) {
                    multiply_strip(
                        shares.data() + t * middle, middle, values + strip * middle * STRIP, sums.data()
                    );
                    for (Size r = 0; r < std::min(HEIGHT, here - t); ++r)
                        for (Size c = strip * STRIP; c < std::min((strip + 1) * STRIP, channels); c += LANES) {
                            Size left = channels - c;
                            Lanes value = load(sums.data() + r * STRIP + c - strip * STRIP) + load(bias + c, left);
                            store(out + (first + t + r) * channels + c, value, left);
                        }
                }
        }
    }
}

}  // namespace

extern "C" {

#define PROMPTS(SUFFIX, T)                                                                                            \
    void packed_bytes_##SUFFIX(Size columns, Size depth, Size *bytes) {                                             \
        *bytes = strips_of(columns) * STRIP * padded(depth) * Size(sizeof(Factor<T>::Type));                          \
    }                                                                                                                 \
    void pack_##SUFFIX(const T *from, Size columns, Size depth, void *to, int turned) {                               \
        pack(from, columns, depth, static_cast<Factor<T>::Type *>(to), turned);                               \
    }                                                                                                                 \
    void attend_prompt_##SUFFIX(                                                                                      \
        const T *x, const void *keys, const float *offsets, const void *values, const T *bias, T *out, Size count,    \
        Size channels, Size heads, Size tokens, float scale                                                           \
    ) {                                                                                                               \
        using H = Factor<T>::Type;                                                                                    \
        attend_prompt(                                                                                                \
            x, static_cast<const H *>(keys), offsets, static_cast<const H *>(values), bias, out, count, channels,     \
            heads, tokens, scale                                                                                      \
        );                                                                                                            \
    }

PROMPTS(f32, float)
PROMPTS(bf16, Bf16)

}  // extern "C"
