// Softmax attention to a prompt that was multiplied into the layers around it; the definition is in prompt.py.
//
// One thread takes some tokens all the way, from the picture's to those that go back, so that neither scores nor shares
// leave its cache.

#include <omp.h>

#include "products.h"

namespace {

// A matrix (depth columns) in strips; it lies row by row, or `turned`, column by column.
template <typename T>
void pack(const T *from, Size columns, Size depth, typename Factor<T>::Type *to, int turned) {
    if (!turned) return pack_rows<T>([&](Size row) { return from + row * columns; }, columns, depth, to);
#pragma omp parallel for schedule(static)
    for (Size strip = 0; strip < strips_of(columns); ++strip)
        pack_columns<T>([&](Size column) { return from + column * depth; }, strip, columns, depth, to);
}

// x (count channels) to out (count channels). Keys are packed (channels, heads tokens), values
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
                        rows.data() + t * deep, deep, deep, keys + strip * deep * STRIP,
                        scores.data() + t * wide + strip * STRIP, wide
                    );
            for (Size t = 0; t < length; ++t) {
                H *to = shares.data() + t * middle;
                for (Size head = 0; head < heads; ++head) {
                    Size place = head * tokens;
                    softmax(scores.data() + t * wide + place, offsets + place, tokens, scale, held.data(), to + place);
                }
                std::fill(to + columns, to + middle, H{});
            }
            for (Size strip = 0; strip < strips_of(channels); ++strip)
                for (Size t = 0; t < here; t += HEIGHT) {
                    multiply_strip(
                        shares.data() + t * middle, middle, middle, values + strip * middle * STRIP, sums.data()
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

// HEIGHT rows and their sums.
template <typename H> struct Held {
    std::vector<H> rows;
    std::vector<float> sums;
    explicit Held(Size deep) : rows(HEIGHT * deep), sums(HEIGHT * STRIP) {}
};

// Multiplies `count` rows of `depth` numbers, at row(r), with a packed matrix: take(r, c, sums) gets STRIP sums of each
// row, from column c on.
template <typename H, typename Row, typename Take>
inline void multiply_packed(Row row, Size count, Size depth, const H *packed, Size columns, Held<H> &held, Take take) {
    Size deep = padded(depth);
    for (Size first = 0; first < count; first += HEIGHT) {
        Size here = std::min(HEIGHT, count - first);
        for (Size t = 0; t < here; ++t)
            for (Size c = 0; c < deep; c += LANES) {
                Lanes some = c < depth ? load(row(first + t) + c, depth - c) : Lanes{};
                store(held.rows.data() + t * deep + c, some);
            }
        for (Size strip = 0; strip < strips_of(columns); ++strip) {
            multiply_strip(held.rows.data(), deep, deep, packed + strip * deep * STRIP, held.sums.data());
            for (Size t = 0; t < here; ++t) take(first + t, strip * STRIP, held.sums.data() + t * STRIP);
        }
    }
}

// Writes what fits of STRIP sums, plus a bias where there is one.
template <typename T>
inline void put(const float *sums, Size c, Size columns, const T *bias, T *to) {
    for (Size start = c; start < std::min(c + STRIP, columns); start += LANES) {
        Lanes value = load(sums + start - c);
        if (bias) value += load(bias + start, columns - start);
        store(to + start, value, columns - start);
    }
}

// Where the tokens of a picture's prompt are among those of all, and its shares among theirs.
struct Prompts {
    Size batch, count, channels, heads, total;
    const Size *starts;
    Size tokens(Size b) const { return starts[b + 1] - starts[b]; }
    Size columns(Size b) const { return heads * tokens(b); }
    // Row of column (head token) in a tensor (heads total).
    Size row(Size b, Size column) const { return column / tokens(b) * total + starts[b] + column % tokens(b); }
    Size most() const {
        Size found = 0;
        for (Size b = 0; b < batch; ++b) found = std::max(found, columns(b));
        return found;
    }
};

// For training, a picture to a thread: x (batch count channels) to out, with keys and values (heads total channels) and
// offsets (heads total). Shares are kept for the way back: those of picture b are (count, heads tokens), after those
// before; behind the last there is room for a vector.
template <typename T>
void learn_forward(
    const T *x, const T *keys, const float *offsets, const T *values, const T *bias, T *out, T *shares, Prompts of,
    float scale
) {
    using H = typename Factor<T>::Type;
    Size most = of.most(), channels = of.channels;
#pragma omp parallel
    {
        std::vector<H> key(padded(channels) * strips_of(most) * STRIP), value(padded(most) * strips_of(channels) * STRIP);
        std::vector<float> scores(HEIGHT * strips_of(most) * STRIP + LANES), offset(most + LANES), part(padded(most));
        std::vector<T> kept(HEIGHT * most + LANES);
        Held<H> held(padded(channels)), mixed(padded(most));
#pragma omp for schedule(dynamic)
        for (Size b = 0; b < of.batch; ++b) {
            Size columns = of.columns(b), tokens = of.tokens(b), wide = strips_of(columns) * STRIP;
            const T *from = x + b * of.count * channels;
            T *share_of = shares + of.count * of.heads * of.starts[b];
            for (Size strip = 0; strip < strips_of(columns); ++strip)
                pack_columns<T>(
                    [&](Size column) { return keys + of.row(b, column) * channels; }, strip, columns, channels, key.data()
                );
            pack_rows<T>(
                [&](Size row) { return values + of.row(b, row) * channels; }, channels, columns, value.data()
            );
            for (Size column = 0; column < columns; ++column) offset[column] = offsets[of.row(b, column)];
            auto keep = [&](Size t, Size c, const float *sums) {
                std::memcpy(scores.data() + t % HEIGHT * wide + c, sums, STRIP * sizeof *sums);
                if (c + STRIP < wide) return;
                T *to = kept.data();
                for (Size head = 0; head < of.heads; ++head) {
                    Size place = head * tokens;
                    softmax(
                        scores.data() + t % HEIGHT * wide + place, offset.data() + place, tokens, scale, part.data(),
                        to + place
                    );
                }
                std::memcpy(share_of + t * columns, to, columns * sizeof *to);
            };
            auto row = [&](Size t) { return from + t * channels; };
            multiply_packed(row, of.count, channels, key.data(), columns, held, keep);
            T *to = out + b * of.count * channels;
            multiply_packed(
                [&](Size t) { return share_of + t * columns; }, of.count, columns, value.data(), channels, mixed,
                [&](Size t, Size c, const float *sums) { put(sums, c, channels, bias, to + t * channels); }
            );
        }
    }
}

// Gradients of x, keys, offsets and values from that of the output.
template <typename T>
void learn_backward(
    const T *x, const T *keys, const T *values, const T *shares, const T *grad, T *by_x, T *by_keys, float *by_offsets,
    T *by_values, Prompts of, float scale
) {
    using H = typename Factor<T>::Type;
    Size most = of.most(), channels = of.channels, count = of.count;
    Size room = std::max(
        std::max(padded(channels) * strips_of(most), padded(most) * strips_of(channels)),
        padded(count) * strips_of(channels)
    );
#pragma omp parallel
    {
        std::vector<H> packed(room * STRIP);
        std::vector<float> slopes(HEIGHT * strips_of(most) * STRIP + LANES);
        std::vector<T> by_scores(count * most + LANES), turned(most * count), shares_turned(most * count);
        Held<H> held(std::max(std::max(padded(channels), padded(most)), padded(count)));
#pragma omp for schedule(dynamic)
        for (Size b = 0; b < of.batch; ++b) {
            Size columns = of.columns(b), tokens = of.tokens(b), wide = strips_of(columns) * STRIP;
            const T *from = x + b * count * channels, *by = grad + b * count * channels;
            const T *share_of = shares + count * of.heads * of.starts[b];
            auto value = [&](Size column) { return values + of.row(b, column) * channels; };
            for (Size strip = 0; strip < strips_of(columns); ++strip)
                pack_columns<T>(value, strip, columns, channels, packed.data());
            // Slopes of the shares, then of the scores: share (slope - sum over tokens of share slope).
            auto weigh = [&](Size t, Size c, const float *sums) {
                float *slope = slopes.data() + t % HEIGHT * wide;
                std::memcpy(slope + c, sums, STRIP * sizeof *sums);
                if (c + STRIP < wide) return;
                const T *part = share_of + t * columns;
                T *to = by_scores.data() + t * columns;
                for (Size head = 0; head < of.heads; ++head) {
                    Lanes sum{};
                    Size start = head * tokens, end = start + tokens;
                    for (Size i = start; i < end; i += LANES) sum += only(load(part + i) * load(slope + i), end - i, 0);
                    float middle = total(sum);
                    // What is written beyond the end is written again.
                    for (Size i = start; i < end; i += LANES)
                        store(to + i, load(part + i) * (load(slope + i) - middle) * scale);
                }
                for (Size i = 0; i < columns; ++i) {
                    turned[i * count + t] = to[i];
                    shares_turned[i * count + t] = part[i];
                }
            };
            multiply_packed(
                [&](Size t) { return by + t * channels; }, count, channels, packed.data(), columns, held, weigh
            );
            pack_rows<T>([&](Size row) { return keys + of.row(b, row) * channels; }, channels, columns, packed.data());
            T *to = by_x + b * count * channels;
            multiply_packed(
                [&](Size t) { return by_scores.data() + t * columns; }, count, columns, packed.data(), channels, held,
                [&](Size t, Size c, const float *sums) { put<T>(sums, c, channels, nullptr, to + t * channels); }
            );
            pack_rows<T>([&](Size t) { return from + t * channels; }, channels, count, packed.data());
            auto over_tokens = [&](const std::vector<T> &left, T *result) {
                multiply_packed(
                    [&](Size i) { return left.data() + i * count; }, columns, count, packed.data(), channels, held,
                    [&](Size i, Size c, const float *sums) {
                        put<T>(sums, c, channels, nullptr, result + of.row(b, i) * channels);
                    }
                );
            };
            over_tokens(turned, by_keys);
            pack_rows<T>([&](Size t) { return by + t * channels; }, channels, count, packed.data());
            over_tokens(shares_turned, by_values);
            for (Size i = 0; i < columns; ++i) {
                Lanes sum{};
                for (Size t = 0; t < count; t += LANES) sum += load(turned.data() + i * count + t, count - t);
                by_offsets[of.row(b, i)] = total(sum);
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

#define LEARNED(SUFFIX, T)                                                                                            \
    void learn_prompt_##SUFFIX(                                                                                       \
        const T *x, const T *keys, const float *offsets, const T *values, const T *bias, T *out, T *shares,           \
        const Size *shape, const Size *starts, float scale                                                            \
    ) {                                                                                                               \
        Prompts of{shape[0], shape[1], shape[2], shape[3], shape[4], starts};                                         \
        learn_forward(x, keys, offsets, values, bias, out, shares, of, scale);                                        \
    }                                                                                                                 \
    void learn_prompt_backward_##SUFFIX(                                                                              \
        const T *x, const T *keys, const T *values, const T *shares, const T *grad, T *by_x, T *by_keys,              \
        float *by_offsets, T *by_values, const Size *shape, const Size *starts, float scale                           \
    ) {                                                                                                               \
        Prompts of{shape[0], shape[1], shape[2], shape[3], shape[4], starts};                                         \
        learn_backward(x, keys, values, shares, grad, by_x, by_keys, by_offsets, by_values, of, scale);               \
    }

LEARNED(f32, float)
LEARNED(bf16, Bf16)

PROMPTS(f32, float)
PROMPTS(bf16, Bf16)

}  // extern "C"
