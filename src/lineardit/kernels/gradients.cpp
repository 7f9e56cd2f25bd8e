// Passes that training makes, forwards and backwards: the definitions are in passes.py and linear_attention.py.
//
// A plain C interface as in passes.cpp. Sums over tokens are added in an order that does not depend on the threads.

#include "lanes.h"

namespace {

// The slope of the feature map where its value is `phi`.
inline Lanes feature_slope(Lanes phi, Lanes x, int map) {
    if (map == 0) return x > 0.0f ? all(1.0f) : Lanes{};
    return x > 0.0f ? all(1.0f) : phi;
}

// Sixteen channels of one row of pixels, `step` numbers apart, or their SiLU, as floats that lie together. The slope
// of SiLU is kept where asked for.
template <typename T>
inline void read_row(
    const T *from, Size step, Size width, Size left, int activate, float *to, float *slopes = nullptr
) {
    for (Size column = 0; column < width; ++column) {
        const T *pixel = from + column * step;
        __builtin_prefetch(pixel + width * step);  // of the next row, which no processor foresees
        Lanes value = load(pixel, left);
        if (activate) {
            Lanes share = sigmoid(value);
            value *= share;
            if (slopes) store(slopes + column * LANES, share + value * (1.0f - share));
        }
        store(to + column * LANES, value);
    }
}

// One row of a 3x3 convolution of sixteen channels; `near` are null where there is none.
template <typename Take>
inline void convolve_row(const float *const near[3], Size width, const float *taps, Lanes bias, Take take) {
    Lanes weight[3][3];
    const float *rows[3];
    for (Size dy = 0; dy < 3; ++dy) {
        rows[dy] = near[dy] ? near[dy] : near[1];
        for (Size dx = 0; dx < 3; ++dx) weight[dy][dx] = near[dy] ? load(taps + (dy * 3 + dx) * LANES) : Lanes{};
    }
    convolve_row(width, weight, bias, [&](Size dy, Size column) { return load(rows[dy] + column * LANES); }, take);
}

// Adds to the gradients of nine taps what one row of gradients says about the rows that it was made of.
inline void add_taps(const float *const near[3], Size width, const float *gradient, Lanes sums[9]) {
    const float *rows[3];
    for (Size dy = 0; dy < 3; ++dy) rows[dy] = near[dy] ? near[dy] : near[1];
    Lanes found[9] = {}, before{}, here = load(gradient);
    for (Size column = 0; column < width; ++column) {
        Lanes after = column + 1 < width ? load(gradient + (column + 1) * LANES) : Lanes{};
#pragma GCC unroll 3
        for (Size dy = 0; dy < 3; ++dy) {
            Lanes pixel = load(rows[dy] + column * LANES);
            found[3 * dy] += after * pixel;
            found[3 * dy + 1] += here * pixel;
            found[3 * dy + 2] += before * pixel;
        }
        before = here;
        here = after;
    }
    for (Size tap = 0; tap < 9; ++tap)
        if (near[tap / 3]) sums[tap] += found[tap];
}

// Rows that come and go: row r of a picture lies at r modulo their number.
struct Ring {
    Size count, length;
    std::vector<float> numbers;
    Ring(Size count, Size width) : count(count), length(width * LANES), numbers(count * width * LANES) {}
    float *at(Size row) { return numbers.data() + row % count * length; }
    void around(Size row, Size height, const float *rows[3]) {
        for (Size dy = 0; dy < 3; ++dy) rows[dy] = row + dy >= 1 && row + dy <= height ? at(row + dy - 1) : nullptr;
    }
};

// The taps of sixteen channels, `both` numbers apart; `turned` from the last to the first.
inline void read_taps(const float *weight, Size both, Size left, int turned, float *to) {
    for (Size tap = 0; tap < 9; ++tap) store(to + (turned ? 8 - tap : tap) * LANES, load(weight + tap * both, left));
}

// Vectors of channels that are read together: what lies in one line of the cache is read once.
constexpr Size GROUPS = 2;

template <typename T>
void gated_forward(
    const T *x, const float *weight, const float *bias, T *out, Size batch, Size height, Size width, Size hidden,
    int activate
) {
    Size blocks = (hidden + GROUPS * LANES - 1) / (GROUPS * LANES), both = 2 * hidden;
#pragma omp parallel
    {
        std::vector<Ring> contents(GROUPS, Ring(3, width)), gates(GROUPS, Ring(3, width));
        std::vector<float> content(width * LANES), taps(GROUPS * 9 * LANES), gate_taps(GROUPS * 9 * LANES);
#pragma omp for collapse(2) schedule(static)
        for (Size b = 0; b < batch; ++b)
            for (Size block = 0; block < blocks; ++block) {
                Size start = block * GROUPS * LANES, groups = std::min(GROUPS, (hidden - start + LANES - 1) / LANES);
                for (Size g = 0; g < groups; ++g) {
                    Size c = start + g * LANES, left = std::min(LANES, hidden - c);
                    read_taps(weight + c, both, left, 0, taps.data() + g * 9 * LANES);
                    read_taps(weight + hidden + c, both, left, 0, gate_taps.data() + g * 9 * LANES);
                }
                for (Size row = 0; row <= height; ++row)
                    for (Size g = 0; g < groups; ++g) {
                        Size c = start + g * LANES, left = std::min(LANES, hidden - c);
                        if (row < height) {
                            const T *from = x + (b * height + row) * width * both + c;
                            read_row(from, both, width, left, activate, contents[g].at(row));
                            read_row(from + hidden, both, width, left, activate, gates[g].at(row));
                        }
                        if (!row) continue;
                        const float *rows[3];
                        contents[g].around(row - 1, height, rows);
                        Lanes first = load(bias + c, left), second = load(bias + hidden + c, left);
                        convolve_row(rows, width, taps.data() + g * 9 * LANES, first, [&](Size column, Lanes sum) {
                            store(content.data() + column * LANES, sum);
                        });
                        gates[g].around(row - 1, height, rows);
                        T *to = out + (b * height + row - 1) * width * hidden + c;
                        auto write = [&](Size column, Lanes sum) {
                            store(to + column * hidden, load(content.data() + column * LANES) * silu(sum), left);
                        };
                        convolve_row(rows, width, gate_taps.data() + g * 9 * LANES, second, write);
                    }
            }
    }
}

// What the backward pass keeps of sixteen channels of the content, or of the gate.
struct Channels {
    Ring read, slopes, sums;
    std::vector<float> taps, turned;
    Lanes by_taps[9], by_bias, bias;
    explicit Channels(Size width)
        : read(3, width), slopes(3, width), sums(3, width), taps(9 * LANES), turned(9 * LANES) {}
    template <typename T> void fill(const T *from, Size step, Size row, Size left, int activate) {
        read_row(from, step, read.length / LANES, left, activate, read.at(row), slopes.at(row));
    }
    void start(const float *weight, const float *offset, Size both, Size left) {
        read_taps(weight, both, left, 0, taps.data());
        read_taps(weight, both, left, 1, turned.data());
        bias = load(offset, left);
        by_bias = Lanes{};
        for (Lanes &each : by_taps) each = Lanes{};
    }
};

// Gradients of x, the taps (9, 2 hidden) and the bias, which are summed over the batch by one thread per channel.
template <typename T>
void gated_backward(
    const T *x, const float *weight, const float *bias, const T *grad, T *by_x, float *by_weight, float *by_bias,
    Size batch, Size height, Size width, Size hidden, int activate
) {
    Size blocks = (hidden + GROUPS * LANES - 1) / (GROUPS * LANES), both = 2 * hidden;
#pragma omp parallel
    {
        std::vector<Channels> contents(GROUPS, Channels(width)), gates(GROUPS, Channels(width));
        std::vector<float> held(width * LANES);
#pragma omp for schedule(static)
        for (Size block = 0; block < blocks; ++block) {
            Size start = block * GROUPS * LANES, groups = std::min(GROUPS, (hidden - start + LANES - 1) / LANES);
            for (Size g = 0; g < groups; ++g) {
                Size c = start + g * LANES, left = std::min(LANES, hidden - c);
                contents[g].start(weight + c, bias + c, both, left);
                gates[g].start(weight + hidden + c, bias + hidden + c, both, left);
            }
            for (Size b = 0; b < batch; ++b)
                for (Size row = 0; row < height + 2; ++row)
                    for (Size g = 0; g < groups; ++g) {
                        Size c = start + g * LANES, left = std::min(LANES, hidden - c);
                        Channels &content = contents[g], &gate = gates[g];
                        const float *rows[3];
                        if (row < height) {
                            const T *from = x + (b * height + row) * width * both + c;
                            content.fill(from, both, row, left, activate);
                            gate.fill(from + hidden, both, row, left, activate);
                        }
                        if (row >= 1 && row <= height) {
                            Size here = row - 1;
                            const T *by = grad + (b * height + here) * width * hidden + c;
                            float *by_content = content.sums.at(here), *by_gate = gate.sums.at(here);
                            content.read.around(here, height, rows);
                            convolve_row(rows, width, content.taps.data(), content.bias, [&](Size column, Lanes sum) {
                                store(held.data() + column * LANES, sum);
                            });
                            gate.read.around(here, height, rows);
                            convolve_row(rows, width, gate.taps.data(), gate.bias, [&](Size column, Lanes sum) {
                                __builtin_prefetch(by + (width + column) * hidden);
                                Lanes share = sigmoid(sum), from = load(by + column * hidden, left);
                                Lanes first = from * sum * share;
                                Lanes slope = share * (1.0f + sum * (1.0f - share));
                                Lanes second = from * load(held.data() + column * LANES) * slope;
                                store(by_content + column * LANES, first);
                                store(by_gate + column * LANES, second);
                                content.by_bias += first;
                                gate.by_bias += second;
                            });
                            add_taps(rows, width, by_gate, gate.by_taps);
                            content.read.around(here, height, rows);
                            add_taps(rows, width, by_content, content.by_taps);
                        }
                        if (row < 2) continue;
                        for (Channels *each : {&content, &gate}) {
                            Size place = (b * height + row - 2) * width * both + (each == &gate) * hidden + c;
                            const float *slopes = each->slopes.at(row - 2);
                            each->sums.around(row - 2, height, rows);
                            convolve_row(rows, width, each->turned.data(), Lanes{}, [&](Size column, Lanes sum) {
                                Lanes slope = activate ? load(slopes + column * LANES) : all(1.0f);
                                store(by_x + place + column * both, sum * slope, left);
                            });
                        }
                    }
            for (Size g = 0; g < groups; ++g)
                for (Channels *each : {&contents[g], &gates[g]}) {
                    Size c = start + g * LANES, left = std::min(LANES, hidden - c);
                    Size to = c + (each == &gates[g]) * hidden;
                    for (Size tap = 0; tap < 9; ++tap) store(by_weight + tap * both + to, each->by_taps[tap], left);
                    store(by_bias + to, each->by_bias, left);
                }
        }
    }
}

// Rows of a tensor as floats, `wide` apart; what is beyond a row, and rows that are not kept, are zero.
template <typename T>
inline void read_tokens(const T *from, Size stride, Size tokens, Size count, Size wide, float *to) {
    for (Size t = 0; t < tokens; ++t)
        for (Size c = 0; c < wide; c += LANES)
            store(to + t * wide + c, c < count ? load(from + t * stride + c, count - c) : Lanes{});
}

// out[t] = left[t] right for as many rows as there are, which must have room for a multiple of eight.
inline void multiply_rows(
    const float *left, Size left_stride, Size depth, const float *right, Size width, float *out, Size rows
) {
    for (Size t = 0; t < rows; t += 8)
        multiply<8>(left + t * left_stride, left_stride, depth, right, width, out + t * width, width);
}

inline void transpose(const float *from, Size rows, Size columns, Size stride, float *to, Size to_stride) {
    for (Size r = 0; r < rows; ++r)
        for (Size c = 0; c < columns; ++c) to[c * to_stride + r] = from[r * stride + c];
}

template <typename T>
void state_backward(
    const T *key, const T *value, const uint8_t *mask, const float *by_memory, const float *by_mass, T *by_key,
    T *by_value, Size batch, Size heads, Size count, Size d, Size e, Strides keys, Strides values, Strides outs_key,
    Strides outs_value, int map
) {
    Size wide = padded(e), deep = padded(d);
#pragma omp parallel
    {
        std::vector<float> phi(TOKENS * deep), held(TOKENS * wide), by_phi(TOKENS * deep), by_held(TOKENS * wide);
        std::vector<float> state(d * wide), turned(e * deep), mass(deep);
#pragma omp for collapse(2) schedule(static)
        for (Size b = 0; b < batch; ++b)
            for (Size head = 0; head < heads; ++head) {
                Size place = b * heads + head;
                std::fill(turned.begin(), turned.end(), 0.0f);
                std::fill(mass.begin(), mass.end(), 0.0f);
                read_tokens(by_memory + place * d * e, e, d, e, wide, state.data());
                transpose(by_memory + place * d * e, d, e, e, turned.data(), deep);
                std::memcpy(mass.data(), by_mass + place * d, d * sizeof(float));
                for (Size start = 0; start < count; start += TOKENS) {
                    Size here = std::min(TOKENS, count - start);
                    const T *k = key + b * keys.batch + head * keys.head + start * keys.token;
                    const T *v = value + b * values.batch + head * values.head + start * values.token;
                    read_tokens(k, keys.token, here, d, deep, phi.data());
                    for (Size i = 0; i < here * deep; i += LANES)
                        store(phi.data() + i, features(load(phi.data() + i), map));
                    read_tokens(v, values.token, here, e, wide, held.data());
                    multiply_rows(held.data(), wide, e, turned.data(), deep, by_phi.data(), here);
                    multiply_rows(phi.data(), deep, d, state.data(), wide, by_held.data(), here);
                    for (Size t = 0; t < here; ++t) {
                        bool kept = !mask || mask[b * count + start + t];
                        T *to_key = by_key + b * outs_key.batch + head * outs_key.head + (start + t) * outs_key.token;
                        T *to_value =
                            by_value + b * outs_value.batch + head * outs_value.head + (start + t) * outs_value.token;
                        for (Size c = 0; c < d; c += LANES) {
                            Lanes some = load(phi.data() + t * deep + c), from = load(k + t * keys.token + c, d - c);
                            Lanes by = load(by_phi.data() + t * deep + c) + load(mass.data() + c);
                            store(to_key + c, kept ? by * feature_slope(some, from, map) : Lanes{}, d - c);
                        }
                        for (Size c = 0; c < e; c += LANES)
                            store(to_value + c, kept ? load(by_held.data() + t * wide + c) : Lanes{}, e - c);
                    }
                }
            }
    }
}

template <typename T>
void apply_backward(
    const T *query, const float *memory, const float *mass, const T *grad, T *by_query, float *by_memory,
    float *by_mass, Size batch, Size heads, Size count, Size d, Size e, Strides queries, Strides grads, Strides outs,
    int map, float eps
) {
    Size wide = padded(e), deep = padded(d);
#pragma omp parallel
    {
        std::vector<float> phi(TOKENS * deep), mixed(TOKENS * wide), from(TOKENS * wide), by_phi(TOKENS * deep);
        std::vector<float> state(d * wide), turned(e * deep), weights(deep), sums(deep * wide), masses(deep);
#pragma omp for collapse(2) schedule(static)
        for (Size b = 0; b < batch; ++b)
            for (Size head = 0; head < heads; ++head) {
                Size place = b * heads + head;
                for (auto *each : {&turned, &weights, &sums, &masses}) std::fill(each->begin(), each->end(), 0.0f);
                read_tokens(memory + place * d * e, e, d, e, wide, state.data());
                transpose(memory + place * d * e, d, e, e, turned.data(), deep);
                std::memcpy(weights.data(), mass + place * d, d * sizeof(float));
                for (Size start = 0; start < count; start += TOKENS) {
                    Size here = std::min(TOKENS, count - start);
                    const T *q = query + b * queries.batch + head * queries.head + start * queries.token;
                    const T *g = grad + b * grads.batch + head * grads.head + start * grads.token;
                    read_tokens(q, queries.token, here, d, deep, phi.data());
                    for (Size i = 0; i < here * deep; i += LANES)
                        store(phi.data() + i, features(load(phi.data() + i), map));
                    read_tokens(g, grads.token, here, e, wide, from.data());
                    multiply_rows(phi.data(), deep, d, state.data(), wide, mixed.data(), here);
                    float by_divisor[TOKENS];
                    for (Size t = 0; t < here; ++t) {
                        Lanes sum{}, product{};
                        for (Size c = 0; c < deep; c += LANES)
                            sum += load(phi.data() + t * deep + c) * load(weights.data() + c);
                        float divisor = total(sum) + eps;
                        for (Size c = 0; c < wide; c += LANES) {
                            Lanes by = load(from.data() + t * wide + c) / divisor;
                            product += by * load(mixed.data() + t * wide + c);
                            store(from.data() + t * wide + c, by);
                        }
                        by_divisor[t] = -total(product) / divisor;
                    }
                    multiply_rows(from.data(), wide, e, turned.data(), deep, by_phi.data(), here);
                    for (Size t = 0; t < here; ++t) {
                        T *to = by_query + b * outs.batch + head * outs.head + (start + t) * outs.token;
                        for (Size c = 0; c < d; c += LANES) {
                            Lanes some = load(phi.data() + t * deep + c);
                            Lanes by = load(by_phi.data() + t * deep + c) + by_divisor[t] * load(weights.data() + c);
                            store(to + c, by * feature_slope(some, load(q + t * queries.token + c, d - c), map), d - c);
                            store(masses.data() + c, load(masses.data() + c) + by_divisor[t] * some);
                        }
                    }
                    add_outer(phi.data(), deep, from.data(), here, sums.data(), wide);
                }
                for (Size c = 0; c < d; ++c)
                    std::memcpy(by_memory + (place * d + c) * e, sums.data() + c * wide, e * sizeof(float));
                std::memcpy(by_mass + place * d, masses.data(), d * sizeof(float));
            }
    }
}

// The prompt's kept tokens of one row and head, and products with them: softmax(q k^T / sqrt(d)) v.
struct Prompt {
    Size d, deep, wide, count = 0;
    std::vector<float> key, value, key_turned, value_turned, held;
    std::vector<Size> kept;
    Prompt(Size tokens, Size d) : d(d), deep(padded(d)), wide(padded(tokens)), held(wide) {
        key.resize(wide * deep);
        value.resize(wide * deep);
        key_turned.resize(d * wide);
        value_turned.resize(d * wide);
    }
    template <typename T>
    void read(const T *k, const T *v, Size key_stride, Size value_stride, const uint8_t *mask, Size tokens) {
        kept.clear();
        for (Size t = 0; t < tokens; ++t)
            if (!mask || mask[t]) kept.push_back(t);
        count = kept.size();
        for (auto *each : {&key, &value, &key_turned, &value_turned}) std::fill(each->begin(), each->end(), 0.0f);
        for (Size t = 0; t < count; ++t) {
            read_tokens(k + kept[t] * key_stride, 0, 1, d, deep, key.data() + t * deep);
            read_tokens(v + kept[t] * value_stride, 0, 1, d, deep, value.data() + t * deep);
        }
        transpose(key.data(), count, d, deep, key_turned.data(), wide);
        transpose(value.data(), count, d, deep, value_turned.data(), wide);
    }
    // Scores of rows become shares that add up to one; beyond the kept tokens they are zero.
    void softmax(float *scores, Size rows, float scale) {
        for (Size t = 0; t < rows; ++t) {
            float *row = scores + t * wide;
            ::softmax(row, nullptr, count, scale, held.data(), row);
            std::fill(row + padded(count), row + wide, 0.0f);
        }
    }
};

template <typename T>
void prompt_forward(
    const T *query, const T *key, const T *value, const uint8_t *mask, T *out, Size batch, Size heads, Size count,
    Size tokens, Size d, Strides queries, Strides keys, Strides values, Strides outs, float scale
) {
#pragma omp parallel
    {
        Prompt prompt(tokens, d);
        Size deep = prompt.deep, wide = prompt.wide;
        std::vector<float> some(TOKENS * deep), shares(TOKENS * wide), mixed(TOKENS * deep);
#pragma omp for collapse(2) schedule(static)
        for (Size b = 0; b < batch; ++b)
            for (Size head = 0; head < heads; ++head) {
                const T *k = key + b * keys.batch + head * keys.head;
                const T *v = value + b * values.batch + head * values.head;
                prompt.read(k, v, keys.token, values.token, mask ? mask + b * tokens : nullptr, tokens);
                for (Size start = 0; start < count; start += TOKENS) {
                    Size here = std::min(TOKENS, count - start);
                    const T *q = query + b * queries.batch + head * queries.head + start * queries.token;
                    read_tokens(q, queries.token, here, d, deep, some.data());
                    multiply_rows(some.data(), deep, d, prompt.key_turned.data(), wide, shares.data(), here);
                    prompt.softmax(shares.data(), here, scale);
                    multiply_rows(shares.data(), wide, prompt.count, prompt.value.data(), deep, mixed.data(), here);
                    for (Size t = 0; t < here; ++t) {
                        T *to = out + b * outs.batch + head * outs.head + (start + t) * outs.token;
                        for (Size c = 0; c < d; c += LANES) store(to + c, load(mixed.data() + t * deep + c), d - c);
                    }
                }
            }
    }
}

template <typename T>
void prompt_backward(
    const T *query, const T *key, const T *value, const uint8_t *mask, const T *grad, T *by_query, T *by_key,
    T *by_value, Size batch, Size heads, Size count, Size tokens, Size d, Strides queries, Strides keys,
    Strides values, Strides grads, Strides outs, Strides outs_key, Strides outs_value, float scale
) {
#pragma omp parallel
    {
        Prompt prompt(tokens, d);
        Size deep = prompt.deep, wide = prompt.wide;
        std::vector<float> some(TOKENS * deep), shares(TOKENS * wide), from(TOKENS * deep), by(TOKENS * wide);
        std::vector<float> mixed(TOKENS * deep), keys_sum(wide * deep), values_sum(wide * deep);
#pragma omp for collapse(2) schedule(static)
        for (Size b = 0; b < batch; ++b)
            for (Size head = 0; head < heads; ++head) {
                const T *k = key + b * keys.batch + head * keys.head;
                const T *v = value + b * values.batch + head * values.head;
                prompt.read(k, v, keys.token, values.token, mask ? mask + b * tokens : nullptr, tokens);
                std::fill(keys_sum.begin(), keys_sum.end(), 0.0f);
                std::fill(values_sum.begin(), values_sum.end(), 0.0f);
                for (Size start = 0; start < count; start += TOKENS) {
                    Size here = std::min(TOKENS, count - start);
                    const T *q = query + b * queries.batch + head * queries.head + start * queries.token;
                    const T *g = grad + b * grads.batch + head * grads.head + start * grads.token;
                    read_tokens(q, queries.token, here, d, deep, some.data());
                    read_tokens(g, grads.token, here, d, deep, from.data());
                    multiply_rows(some.data(), deep, d, prompt.key_turned.data(), wide, shares.data(), here);
                    prompt.softmax(shares.data(), here, scale);
                    multiply_rows(from.data(), deep, d, prompt.value_turned.data(), wide, by.data(), here);
                    add_outer(shares.data(), wide, from.data(), here, values_sum.data(), deep);
                    for (Size t = 0; t < here; ++t) {
                        float *share = shares.data() + t * wide, *slope = by.data() + t * wide;
                        Lanes sum{};
                        for (Size c = 0; c < wide; c += LANES) sum += load(share + c) * load(slope + c);
                        float middle = total(sum);
                        for (Size c = 0; c < wide; c += LANES)
                            store(slope + c, load(share + c) * (load(slope + c) - middle) * scale);
                    }
                    multiply_rows(by.data(), wide, prompt.count, prompt.key.data(), deep, mixed.data(), here);
                    add_outer(by.data(), wide, some.data(), here, keys_sum.data(), deep);
                    for (Size t = 0; t < here; ++t) {
                        T *to = by_query + b * outs.batch + head * outs.head + (start + t) * outs.token;
                        for (Size c = 0; c < d; c += LANES) store(to + c, load(mixed.data() + t * deep + c), d - c);
                    }
                }
                T *to_key = by_key + b * outs_key.batch + head * outs_key.head;
                T *to_value = by_value + b * outs_value.batch + head * outs_value.head;
                for (Size t = 0; t < tokens; ++t)
                    for (Size c = 0; c < d; c += LANES) {
                        store(to_key + t * outs_key.token + c, Lanes{}, d - c);
                        store(to_value + t * outs_value.token + c, Lanes{}, d - c);
                    }
                for (Size t = 0; t < prompt.count; ++t)
                    for (Size c = 0; c < d; c += LANES) {
                        Size token = prompt.kept[t];
                        store(to_key + token * outs_key.token + c, load(keys_sum.data() + t * deep + c), d - c);
                        store(to_value + token * outs_value.token + c, load(values_sum.data() + t * deep + c), d - c);
                    }
            }
    }
}

constexpr Size CHUNK = 64;

// Adds the sums of chunks of tokens, (b chunks width), over the chunks.
inline void add_chunks(const float *parts, float *out, Size batch, Size chunks, Size width) {
    for (Size b = 0; b < batch; ++b) {
        std::fill(out + b * width, out + (b + 1) * width, 0.0f);
        for (Size chunk = 0; chunk < chunks; ++chunk)
            for (Size c = 0; c < width; ++c) out[b * width + c] += parts[(b * chunks + chunk) * width + c];
    }
}

// Gradients of what is normalised and of its shift and scale, (b width) each. `by_sum` is that of the sum itself,
// which is added, `by_y` the gradient of what was added to it, in its dtype; both may be null.
template <typename T>
void steer_backward(
    const float *sum, const float *scale, const T *grad, const float *by_sum, float *by_x, T *by_y, float *by_shift,
    float *by_scale, Size batch, Size per_batch, Size width, Size table_stride, float eps
) {
    Size chunks = (per_batch + CHUNK - 1) / CHUNK, wide = padded(width);
    std::vector<float> shifts(batch * chunks * width), scales(batch * chunks * width);
#pragma omp parallel
    {
        std::vector<float> normed(wide), by(wide), shift_sums(wide), scale_sums(wide);
#pragma omp for collapse(2) schedule(static)
        for (Size b = 0; b < batch; ++b)
            for (Size chunk = 0; chunk < chunks; ++chunk) {
                std::fill(shift_sums.begin(), shift_sums.end(), 0.0f);
                std::fill(scale_sums.begin(), scale_sums.end(), 0.0f);
                for (Size t = chunk * CHUNK; t < std::min((chunk + 1) * CHUNK, per_batch); ++t) {
                    Size place = (b * per_batch + t) * width;
                    Lanes mean{};
                    for (Size c = 0; c < width; c += LANES) {
                        Lanes value = load(sum + place + c, width - c);
                        store(normed.data() + c, value);
                        mean += value;
                    }
                    float middle = total(mean) / width;
                    Lanes squares{};
                    for (Size c = 0; c < width; c += LANES) {
                        Lanes apart = load(normed.data() + c) - middle;
                        for (Size lane = std::max<Size>(0, width - c); lane < LANES; ++lane) apart[lane] = 0;
                        squares += apart * apart;
                        store(normed.data() + c, apart);
                    }
                    float slope = 1 / std::sqrt(total(squares) / width + eps);
                    Lanes first{}, second{};
                    for (Size c = 0; c < width; c += LANES) {
                        Lanes from = load(grad + place + c, width - c), unit = load(normed.data() + c) * slope;
                        store(shift_sums.data() + c, load(shift_sums.data() + c) + from);
                        store(scale_sums.data() + c, load(scale_sums.data() + c) + from * unit);
                        from *= 1 + load(scale + b * table_stride + c, width - c);
                        store(by.data() + c, from);
                        store(normed.data() + c, unit);
                        first += from;
                        second += from * unit;
                    }
                    float all_first = total(first) / width, all_second = total(second) / width;
                    for (Size c = 0; c < width; c += LANES) {
                        Size left = width - c;
                        Lanes value = (load(by.data() + c) - all_first - load(normed.data() + c) * all_second) * slope;
                        if (by_sum) value += load(by_sum + place + c, left);
                        store(by_x + place + c, value, left);
                        if (by_y) store(by_y + place + c, value, left);
                    }
                }
                Size part = (b * chunks + chunk) * width;
                std::memcpy(shifts.data() + part, shift_sums.data(), width * sizeof(float));
                std::memcpy(scales.data() + part, scale_sums.data(), width * sizeof(float));
            }
    }
    add_chunks(shifts.data(), by_shift, batch, chunks, width);
    add_chunks(scales.data(), by_scale, batch, chunks, width);
}

// Gradients of y and of the gate (b width) where x + gate y was made.
template <typename T>
void gate_backward(
    const T *y, const float *gate, const float *grad, T *by_y, float *by_gate, Size batch, Size per_batch, Size width,
    Size table_stride
) {
    Size chunks = (per_batch + CHUNK - 1) / CHUNK;
    std::vector<float> parts(batch * chunks * width);
#pragma omp parallel
    {
        std::vector<float> sums(padded(width));
#pragma omp for collapse(2) schedule(static)
        for (Size b = 0; b < batch; ++b)
            for (Size chunk = 0; chunk < chunks; ++chunk) {
                std::fill(sums.begin(), sums.end(), 0.0f);
                for (Size t = chunk * CHUNK; t < std::min((chunk + 1) * CHUNK, per_batch); ++t) {
                    Size place = (b * per_batch + t) * width;
                    for (Size c = 0; c < width; c += LANES) {
                        Size left = width - c;
                        Lanes from = load(grad + place + c, left);
                        store(by_y + place + c, from * load(gate + b * table_stride + c, left), left);
                        store(sums.data() + c, load(sums.data() + c) + from * load(y + place + c, left));
                    }
                }
                std::memcpy(parts.data() + (b * chunks + chunk) * width, sums.data(), width * sizeof(float));
            }
    }
    add_chunks(parts.data(), by_gate, batch, chunks, width);
}

inline Strides strides_at(const Size *strides, Size place) {
    return Strides{strides[3 * place], strides[3 * place + 1], strides[3 * place + 2]};
}

}  // namespace

extern "C" {

#define GRADIENTS(SUFFIX, T)                                                                                          \
    void gated_forward_##SUFFIX(                                                                                      \
        const T *x, const float *weight, const float *bias, T *out, Size batch, Size height, Size width, Size hidden, \
        int activate                                                                                                  \
    ) {                                                                                                               \
        gated_forward(x, weight, bias, out, batch, height, width, hidden, activate);                                  \
    }                                                                                                                 \
    void gated_backward_##SUFFIX(                                                                                     \
        const T *x, const float *weight, const float *bias, const T *grad, T *by_x, float *by_weight, float *by_bias, \
        Size batch, Size height, Size width, Size hidden, int activate                                                \
    ) {                                                                                                               \
        gated_backward(x, weight, bias, grad, by_x, by_weight, by_bias, batch, height, width, hidden, activate);      \
    }                                                                                                                 \
    void state_backward_##SUFFIX(                                                                                     \
        const T *key, const T *value, const uint8_t *mask, const float *by_memory, const float *by_mass, T *by_key,   \
        T *by_value, const Size *shape, const Size *strides, int map                                                  \
    ) {                                                                                                               \
        state_backward(                                                                                               \
            key, value, mask, by_memory, by_mass, by_key, by_value, shape[0], shape[1], shape[2], shape[3], shape[4], \
            strides_at(strides, 0), strides_at(strides, 1), strides_at(strides, 2), strides_at(strides, 3), map       \
        );                                                                                                            \
    }                                                                                                                 \
    void apply_backward_##SUFFIX(                                                                                     \
        const T *query, const float *memory, const float *mass, const T *grad, T *by_query, float *by_memory,         \
        float *by_mass, const Size *shape, const Size *strides, int map, float eps                                    \
    ) {                                                                                                               \
        apply_backward(                                                                                               \
            query, memory, mass, grad, by_query, by_memory, by_mass, shape[0], shape[1], shape[2], shape[3],          \
            shape[4], strides_at(strides, 0), strides_at(strides, 1), strides_at(strides, 2), map, eps                \
        );                                                                                                            \
    }                                                                                                                 \
    void prompt_forward_##SUFFIX(                                                                                     \
        const T *query, const T *key, const T *value, const uint8_t *mask, T *out, const Size *shape,                 \
        const Size *strides, float scale                                                                              \
    ) {                                                                                                               \
        prompt_forward(                                                                                               \
            query, key, value, mask, out, shape[0], shape[1], shape[2], shape[3], shape[4], strides_at(strides, 0),   \
            strides_at(strides, 1), strides_at(strides, 2), strides_at(strides, 3), scale                             \
        );                                                                                                            \
    }                                                                                                                 \
    void prompt_backward_##SUFFIX(                                                                                    \
        const T *query, const T *key, const T *value, const uint8_t *mask, const T *grad, T *by_query, T *by_key,     \
        T *by_value, const Size *shape, const Size *strides, float scale                                              \
    ) {                                                                                                               \
        prompt_backward(                                                                                              \
            query, key, value, mask, grad, by_query, by_key, by_value, shape[0], shape[1], shape[2], shape[3],        \
            shape[4], strides_at(strides, 0), strides_at(strides, 1), strides_at(strides, 2), strides_at(strides, 3), \
            strides_at(strides, 4), strides_at(strides, 5), strides_at(strides, 6), scale                             \
        );                                                                                                            \
    }                                                                                                                 \
    void steer_forward_##SUFFIX(                                                                                      \
        const float *x, const T *y, const float *gate, const float *shift, const float *scale, float *sum, T *out,    \
        Size rows, Size per_batch, Size width, Size table_stride, float eps                                           \
    ) {                                                                                                               \
        add_steer(x, y, gate, shift, scale, sum, out, rows, per_batch, width, table_stride, eps);                     \
    }                                                                                                                 \
    void steer_backward_##SUFFIX(                                                                                     \
        const float *sum, const float *scale, const T *grad, const float *by_sum, float *by_x, T *by_y,               \
        float *by_shift, float *by_scale, Size batch, Size per_batch, Size width, Size table_stride, float eps        \
    ) {                                                                                                               \
        steer_backward(                                                                                               \
            sum, scale, grad, by_sum, by_x, by_y, by_shift, by_scale, batch, per_batch, width, table_stride, eps      \
        );                                                                                                            \
    }                                                                                                                 \
    void gate_backward_##SUFFIX(                                                                                      \
        const T *y, const float *gate, const float *grad, T *by_y, float *by_gate, Size batch, Size per_batch,        \
        Size width, Size table_stride                                                                                 \
    ) {                                                                                                               \
        gate_backward(y, gate, grad, by_y, by_gate, batch, per_batch, width, table_stride);                           \
    }

GRADIENTS(f32, float)
GRADIENTS(bf16, Bf16)

}  // extern "C"
