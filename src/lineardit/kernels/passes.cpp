// Passes over tokens and pixels that torch makes several of, each in one: the definitions are in passes.py.
//
// A plain C interface: pointers, sizes, and strides in numbers (not bytes). Every function comes as _f32 and _bf16.
// Sums run in float32 and are rounded once, when they are written.

#include "lanes.h"

namespace {

template <typename T>
void rms_norm(
    const T *x, const T *residual, const T *weight, const T *bias, T *out, Size rows, Size width, float eps, int relu
) {
#pragma omp parallel for schedule(static)
    for (Size row = 0; row < rows; ++row) {
        Size place = row * width;
        Lanes squares{};
        for (Size c = 0; c < width; c += LANES) {
            Lanes value = load(x + place + c, width - c);
            squares += value * value;
        }
        float slope = 1 / std::sqrt(total(squares) / width + eps);
        for (Size c = 0; c < width; c += LANES) {
            Size left = width - c;
            Lanes value = load(x + place + c, left) * slope * load(weight + c, left);
            if (bias) value += load(bias + c, left);
            if (relu) value = features(value, 0);
            if (residual) value += load(residual + place + c, left);
            store(out + place + c, value, left);
        }
    }
}

// Rows, and channels of the content with as many of the gate, that one task keeps at hand.
constexpr Size ROWS = 8, BLOCK = 64;

// One row for sixteen channels, or for `left`; `near` are the rows above, at and below it, null where there is none.
template <bool WHOLE, typename T, typename Take>
inline void depthwise_row(
    const T *const near[3], Size step, Size width, const float *taps, Size both, Lanes bias, Size left, Size ahead, Take take
) {
    Lanes weight[3][3];
    const T *rows[3];
    for (Size dy = 0; dy < 3; ++dy) {
        rows[dy] = near[dy] ? near[dy] : near[1];
        for (Size dx = 0; dx < 3; ++dx) weight[dy][dx] = near[dy] ? load(taps + (dy * 3 + dx) * both, left) : Lanes{};
    }
    auto read = [&](Size dy, Size column) {
        const T *pixel = rows[dy] + column * step;
        if (WHOLE && dy == 2 && ahead) {
            __builtin_prefetch(pixel + ahead);
            __builtin_prefetch(pixel + ahead + 2 * LANES);
        }
        return WHOLE ? load(pixel) : load(pixel, left);
    };
    convolve_row(width, weight, bias, read, take);
}

template <typename T>
void depthwise_gate(
    const T *x, const float *weight, const float *bias, T *out, Size batch, Size height, Size width, Size hidden
) {
    Size blocks = (hidden + BLOCK - 1) / BLOCK, bands = (height + ROWS - 1) / ROWS, both = 2 * hidden;
#pragma omp parallel
    {
        std::vector<float> contents(width * LANES);
#pragma omp for collapse(3) schedule(static)
        for (Size b = 0; b < batch; ++b)
            for (Size band = 0; band < bands; ++band)
                for (Size block = 0; block < blocks; ++block)
                    for (Size row = band * ROWS; row < std::min((band + 1) * ROWS, height); ++row)
                        for (Size c = block * BLOCK; c < std::min((block + 1) * BLOCK, hidden); c += LANES) {
                            const T *rows[3], *gates[3];
                            for (Size dy = 0; dy < 3; ++dy) {
                                bool there = row + dy >= 1 && row + dy <= height;
                                rows[dy] = there ? x + (b * height + row + dy - 1) * width * both + c : nullptr;
                                gates[dy] = there ? rows[dy] + hidden : nullptr;
                            }
                            Size left = hidden - c, ahead = c == block * BLOCK ? width * both : 0;
                            T *to = out + (b * height + row) * width * hidden + c;
                            auto keep = [&](Size column, Lanes sum) { store(contents.data() + column * LANES, sum); };
                            auto write = [&](Size column, Lanes sum) {
                                store(to + column * hidden, load(contents.data() + column * LANES) * silu(sum), left);
                            };
                            const float *taps = weight + c;
                            Lanes first = load(bias + c, left), second = load(bias + hidden + c, left);
                            if (left >= LANES) {
                                depthwise_row<true>(rows, both, width, taps, both, first, left, ahead, keep);
                                depthwise_row<true>(gates, both, width, taps + hidden, both, second, left, ahead, write);
                            } else {
                                depthwise_row<false>(rows, both, width, taps, both, first, left, ahead, keep);
                                depthwise_row<false>(gates, both, width, taps + hidden, both, second, left, ahead, write);
                            }
                        }
    }
}

// Numbers that are about to be read.
template <typename T> inline void prefetch(const T *from, Size count) {
    constexpr Size LINE = 64 / sizeof(T);
    for (Size i = 0; i < count; i += LINE) __builtin_prefetch(from + i);
}

// Tokens before they are read, and those that a state is applied to at once.
constexpr Size AHEAD = 16, APPLIED = 8;

template <typename T>
void attention_state(
    const T *key, const T *value, const uint8_t *mask, float *memory, float *mass, Size batch, Size heads, Size count,
    Size d, Size e, Strides keys, Strides values, int map
) {
    Size wide = padded(e), deep = padded(d);
#pragma omp parallel
    {
        std::vector<float> phi(TOKENS * deep), held(TOKENS * wide), state(deep * wide), sums(deep);
#pragma omp for collapse(2) schedule(static)
        for (Size b = 0; b < batch; ++b)
            for (Size head = 0; head < heads; ++head) {
                std::fill(state.begin(), state.end(), 0.0f);
                std::fill(sums.begin(), sums.end(), 0.0f);
                for (Size start = 0; start < count; start += TOKENS) {
                    Size here = std::min(TOKENS, count - start);
                    for (Size t = 0; t < here; ++t) {
                        const T *k = key + b * keys.batch + head * keys.head + (start + t) * keys.token;
                        const T *v = value + b * values.batch + head * values.head + (start + t) * values.token;
                        bool kept = !mask || mask[b * count + start + t];
                        // Tokens are pages apart, which the processor does not foresee.
                        if (start + t + TOKENS < count) {
                            prefetch(k + TOKENS * keys.token, d);
                            prefetch(v + TOKENS * values.token, e);
                        }
                        for (Size c = 0; c < d; c += LANES) {
                            Lanes some = kept ? features(load(k + c, d - c), map) : Lanes{};
                            store(phi.data() + t * deep + c, some);
                            store(sums.data() + c, load(sums.data() + c) + some);
                        }
                        for (Size c = 0; c < e; c += LANES)
                            store(held.data() + t * wide + c, kept ? load(v + c, e - c) : Lanes{});
                    }
                    add_outer(phi.data(), deep, held.data(), here, state.data(), wide);
                }
                Size place = b * heads + head;
                for (Size c = 0; c < d; ++c)
                    std::memcpy(memory + (place * d + c) * e, state.data() + c * wide, e * sizeof(float));
                std::memcpy(mass + place * d, sums.data(), d * sizeof(float));
            }
    }
}

template <typename T>
void attention_apply(
    const T *query, const float *memory, const float *mass, T *out, Size batch, Size heads, Size count, Size d, Size e,
    Strides queries, Strides outs, int map, float eps
) {
    Size wide = padded(e), deep = padded(d), parts = (count + TOKENS - 1) / TOKENS;
#pragma omp parallel
    {
        std::vector<float> phi(APPLIED * deep), state(d * wide, 0.0f), mixed(APPLIED * wide), weights(deep, 0.0f);
#pragma omp for collapse(3) schedule(static)
        for (Size b = 0; b < batch; ++b)
            for (Size head = 0; head < heads; ++head)
                for (Size part = 0; part < parts; ++part) {
                    Size place = b * heads + head;
                    for (Size c = 0; c < d; ++c)
                        std::memcpy(state.data() + c * wide, memory + (place * d + c) * e, e * sizeof(float));
                    std::memcpy(weights.data(), mass + place * d, d * sizeof(float));
                    Size end = std::min((part + 1) * TOKENS, count);
                    for (Size start = part * TOKENS; start < end; start += APPLIED) {
                        Size here = std::min(APPLIED, end - start);
                        float shares[APPLIED];
                        for (Size t = 0; t < here; ++t) {
                            const T *q = query + b * queries.batch + head * queries.head + (start + t) * queries.token;
                            if (start + t + AHEAD < count) prefetch(q + AHEAD * queries.token, d);
                            Lanes sum{};
                            for (Size c = 0; c < d; c += LANES) {
                                Lanes some = features(load(q + c, d - c), map);
                                store(phi.data() + t * deep + c, some);
                                sum += some * load(weights.data() + c);
                            }
                            shares[t] = 1 / (total(sum) + eps);
                        }
                        multiply<APPLIED>(phi.data(), deep, d, state.data(), wide, mixed.data(), wide);
                        for (Size t = 0; t < here; ++t) {
                            T *to = out + b * outs.batch + head * outs.head + (start + t) * outs.token;
                            for (Size c = 0; c < e; c += LANES)
                                store(to + c, load(mixed.data() + t * wide + c) * shares[t], e - c);
                        }
                    }
                }
    }
}

}  // namespace

extern "C" {

// Raised whenever a signature below changes.
int lineardit_passes_version() { return 5; }

#define PASSES(SUFFIX, T)                                                                                             \
    void add_steer_##SUFFIX(                                                                                          \
        const T *x, const T *y, const T *gate, const T *shift, const T *scale, T *sum, T *out, Size rows,             \
        Size per_batch, Size width, Size table_stride, float eps                                                      \
    ) {                                                                                                               \
        add_steer(x, y, gate, shift, scale, sum, out, rows, per_batch, width, table_stride, eps);                     \
    }                                                                                                                 \
    void rms_norm_##SUFFIX(                                                                                           \
        const T *x, const T *residual, const T *weight, const T *bias, T *out, Size rows, Size width, float eps,      \
        int relu                                                                                                      \
    ) {                                                                                                               \
        rms_norm(x, residual, weight, bias, out, rows, width, eps, relu);                                             \
    }                                                                                                                 \
    void depthwise_gate_##SUFFIX(                                                                                     \
        const T *x, const float *weight, const float *bias, T *out, Size batch, Size height, Size width, Size hidden  \
    ) {                                                                                                               \
        depthwise_gate(x, weight, bias, out, batch, height, width, hidden);                                           \
    }                                                                                                                 \
    void attention_state_##SUFFIX(                                                                                    \
        const T *key, const T *value, const uint8_t *mask, float *memory, float *mass, const Size *shape,             \
        const Size *strides, int map                                                                                  \
    ) {                                                                                                               \
        attention_state(                                                                                              \
            key, value, mask, memory, mass, shape[0], shape[1], shape[2], shape[3], shape[4],                         \
            Strides{strides[0], strides[1], strides[2]}, Strides{strides[3], strides[4], strides[5]}, map             \
        );                                                                                                            \
    }                                                                                                                 \
    void attention_apply_##SUFFIX(                                                                                    \
        const T *query, const float *memory, const float *mass, T *out, const Size *shape, const Size *strides,       \
        int map, float eps                                                                                            \
    ) {                                                                                                               \
        attention_apply(                                                                                              \
            query, memory, mass, out, shape[0], shape[1], shape[2], shape[3], shape[4],                               \
            Strides{strides[0], strides[1], strides[2]}, Strides{strides[3], strides[4], strides[5]}, map, eps        \
        );                                                                                                            \
    }

PASSES(f32, float)
PASSES(bf16, Bf16)

}  // extern "C"
