// 3x3 convolutions in fewer products; the definitions are in convolution.py.
//
// A tile is 2x2 pixels of the result. What it sees is mixed into KEPT x KEPT planes (spread), every plane is multiplied
// by a matrix of its own, channels by channels, and the sums are mixed into the tile (gather). One thread takes some
// tiles all the way, so that nothing of them leaves its cache.

#include "products.h"

namespace {

// Two sums over three neighbours each, of four numbers in a row, in four products instead of six.
struct Plain {
    static constexpr Size SEEN = 4, KEPT = 4, STEP = 2;
    static void spread(const Lanes *in, Lanes *out) {
        out[0] = in[0] - in[2];
        out[1] = in[1] + in[2];
        out[2] = in[2] - in[1];
        out[3] = in[1] - in[3];
    }
    static void mix(const Lanes *taps, Lanes *out) {
        out[0] = taps[0];
        out[1] = 0.5f * (taps[0] + taps[1] + taps[2]);
        out[2] = 0.5f * (taps[0] - taps[1] + taps[2]);
        out[3] = taps[2];
    }
    static void gather(const Lanes *in, Lanes *out) {
        out[0] = in[0] + in[1] + in[2];
        out[1] = in[1] - in[2] - in[3];
    }
};

// The same where the two in the middle are one pixel that was doubled: three products.
struct Doubled {
    static constexpr Size SEEN = 3, KEPT = 3, STEP = 1;
    static void spread(const Lanes *in, Lanes *out) {
        out[0] = in[0] - in[1];
        out[1] = in[1];
        out[2] = in[1] - in[2];
    }
    static void mix(const Lanes *taps, Lanes *out) {
        out[0] = taps[0];
        out[1] = taps[0] + taps[1] + taps[2];
        out[2] = taps[2];
    }
    static void gather(const Lanes *in, Lanes *out) {
        out[0] = in[0] + in[1];
        out[1] = in[1] - in[2];
    }
};

// How few tiles are not worth fetching the kernels for.
constexpr Size FEWEST = 2 * HEIGHT;

struct Shape {
    Size batch, height, width, channels, out;
};

// weight (out channels 3 3), of any strides, -> (strips planes deep STRIP), in pairs of rows where they are multiplied so.
template <typename Form, typename T, typename H>
void mix_kernels(const T *weight, const Size *strides, H *kernels, Shape shape, Size deep) {
    constexpr Size KEPT = Form::KEPT, PAIR = Factor<T>::PAIR;
    Size strips = strips_of(shape.out);
#pragma omp parallel for collapse(2) schedule(static)
    for (Size strip = 0; strip < strips; ++strip)
        for (Size c = 0; c < deep; ++c)
            for (Size start = strip * STRIP; start < (strip + 1) * STRIP; start += LANES) {
                float taps[9][LANES] = {};
                for (Size lane = 0; lane < std::min(LANES, shape.out - start) && c < shape.channels; ++lane)
                    for (Size tap = 0; tap < 9; ++tap)
                        taps[tap][lane] = number(
                            weight[(start + lane) * strides[0] + c * strides[1] + tap / 3 * strides[2] + tap % 3 * strides[3]]
                        );
                Lanes down[KEPT][3], mixed[KEPT * KEPT];
                for (Size b = 0; b < 3; ++b) {
                    Lanes in[3] = {load(taps[b]), load(taps[3 + b]), load(taps[6 + b])}, out[KEPT];
                    Form::mix(in, out);
                    for (Size k = 0; k < KEPT; ++k) down[k][b] = out[k];
                }
                for (Size k = 0; k < KEPT; ++k) Form::mix(down[k], mixed + k * KEPT);
                for (Size k = 0; k < KEPT * KEPT; ++k) {
                    H some[LANES];
                    store(some, mixed[k]);
                    H *to = kernels + ((strip * KEPT * KEPT + k) * deep + c / PAIR * PAIR) * STRIP;
                    for (Size lane = 0; lane < LANES; ++lane)
                        to[(start - strip * STRIP + lane) * PAIR + c % PAIR] = some[lane];
                }
            }
}

// What a tile sees of x (height width channels) from (top, start) on, mixed: plane k is at k * plane. Around x are zeros.
// `INSIDE` says that all of it is in the picture, and channels fill their vectors.
template <typename Form, bool INSIDE, typename T, typename H>
inline void spread(const T *x, H *planes, Size plane, Size top, Size start, Shape shape) {
    constexpr Size SEEN = Form::SEEN, KEPT = Form::KEPT;
    const T *corner = x + (top * shape.width + start) * shape.channels;
    auto seen = [&](Size a, Size b, Size c) {
        const T *pixel = corner + (a * shape.width + b) * shape.channels + c;
        if (INSIDE) return load(pixel);
        bool there = top + a >= 0 && top + a < shape.height && start + b >= 0 && start + b < shape.width;
        return there ? load(pixel, shape.channels - c) : Lanes{};
    };
    for (Size c = 0; c < shape.channels; c += LANES) {
        Lanes down[KEPT][SEEN], mixed[KEPT];
#pragma GCC unroll 4
        for (Size b = 0; b < SEEN; ++b) {
            Lanes in[SEEN], out[KEPT];
#pragma GCC unroll 4
            for (Size a = 0; a < SEEN; ++a) in[a] = seen(a, b, c);
            Form::spread(in, out);
#pragma GCC unroll 4
            for (Size k = 0; k < KEPT; ++k) down[k][b] = out[k];
        }
#pragma GCC unroll 4
        for (Size k = 0; k < KEPT; ++k) {
            Form::spread(down[k], mixed);
#pragma GCC unroll 4
            for (Size l = 0; l < KEPT; ++l) store(planes + (k * KEPT + l) * plane + c, mixed[l]);
        }
    }
}

// Sixteen channels of a shortcut: channel (4 o + phase) from / (4 out) of the small pixel goes to channel o.
template <typename T> inline Lanes repeated(const T *pixel, Size c, Size left, Size phase, Size repeats) {
    if (repeats == 4) return load(pixel + c, left);
    if (repeats == 2 && left >= LANES) return load_every_other(pixel + 2 * c, phase / 2);
    T some[LANES] = {};
    for (Size lane = 0; lane < std::min(LANES, left); ++lane) some[lane] = pixel[(4 * (c + lane) + phase) / repeats];
    return load(some);
}

// x (b h w channels) to out (b h w out), or (b 2h 2w out) of a doubled picture; bias, SiLU and x as the shortcut where
// they are asked for.
template <typename Form, typename T>
void convolve(
    const T *x, const T *weight, const Size *strides, const T *bias, T *out, Shape shape, int shortcut, int activate
) {
    using H = typename Factor<T>::Type;
    constexpr Size KEPT = Form::KEPT, PLANES = KEPT * KEPT, SCALE = 2 / Form::STEP;
    Size height = SCALE * shape.height, width = SCALE * shape.width, columns = (width + 1) / 2;
    Size tiles = (height + 1) / 2 * columns, deep = padded(shape.channels), strips = strips_of(shape.out);
    Size fitting = CACHE / (PLANES * deep * Size(sizeof(H))) / HEIGHT * HEIGHT;
    Size block = std::min(std::max(fitting, FEWEST), (tiles + HEIGHT - 1) / HEIGHT * HEIGHT);
    Size blocks = (tiles + block - 1) / block, repeats = shortcut ? 4 * shape.out / shape.channels : 0;
    std::vector<H> kernels(strips * PLANES * deep * STRIP);
    mix_kernels<Form>(weight, strides, kernels.data(), shape, deep);
#pragma omp parallel
    {
        std::vector<H> planes(PLANES * block * deep);
        std::vector<float> sums(PLANES * block * STRIP);
#pragma omp for collapse(2) schedule(dynamic)
        for (Size b = 0; b < shape.batch; ++b)
            for (Size some = 0; some < blocks; ++some) {
                Size start = some * block, count = std::min(block, tiles - start);
                const T *picture = x + b * shape.height * shape.width * shape.channels;
                for (Size t = 0; t < count; ++t) {
                    Size top = Form::STEP * ((start + t) / columns) - 1, left = Form::STEP * ((start + t) % columns) - 1;
                    bool inside = top >= 0 && left >= 0 && top + Form::SEEN <= shape.height &&
                        left + Form::SEEN <= shape.width && shape.channels % LANES == 0;
                    H *to = planes.data() + t * deep;
                    (inside ? spread<Form, true, T, H> : spread<Form, false, T, H>)(
                        picture, to, block * deep, top, left, shape
                    );
                }
                for (Size strip = 0; strip < strips; ++strip) {
                    for (Size k = 0; k < PLANES; ++k)
                        for (Size t = 0; t < count; t += HEIGHT)
                            multiply_strip(
                                planes.data() + (k * block + t) * deep, deep,
                                kernels.data() + (strip * PLANES + k) * deep * STRIP, sums.data() + (k * block + t) * STRIP
                            );
                    Size end = std::min((strip + 1) * STRIP, shape.out);
                    for (Size t = 0; t < count; ++t)
                        for (Size c = strip * STRIP; c < end; c += LANES) {
                            Size row = (start + t) / columns, column = (start + t) % columns, left = shape.out - c;
                            const float *near = sums.data() + t * STRIP + c - strip * STRIP;
                            const T *pixel = shortcut ? picture + (row * columns + column) * shape.channels : nullptr;
                            Lanes down[2][KEPT], offset = bias ? load(bias + c, left) : Lanes{};
#pragma GCC unroll 4
                            for (Size l = 0; l < KEPT; ++l) {
                                Lanes in[KEPT], pair[2];
#pragma GCC unroll 4
                                for (Size k = 0; k < KEPT; ++k) in[k] = load(near + (k * KEPT + l) * block * STRIP);
                                Form::gather(in, pair);
                                down[0][l] = pair[0];
                                down[1][l] = pair[1];
                            }
                            for (Size p = 0; p < 2 && 2 * row + p < height; ++p) {
                                Lanes pair[2];
                                Form::gather(down[p], pair);
                                for (Size q = 0; q < 2 && 2 * column + q < width; ++q) {
                                    Lanes value = pair[q] + offset;
                                    if (pixel) value += repeated(pixel, c, left, 2 * p + q, repeats);
                                    T *to = out + ((b * height + 2 * row + p) * width + 2 * column + q) * shape.out + c;
                                    store(to, activate ? silu(value) : value, left);
                                }
                            }
                        }
                }
            }
    }
}

}  // namespace

extern "C" {

#define CONVOLUTIONS(SUFFIX, T)                                                                                       \
    void convolve_##SUFFIX(                                                                                           \
        const T *x, const T *weight, const Size *strides, const T *bias, T *out, const Size *shape, int doubled,      \
        int shortcut, int activate                                                                                    \
    ) {                                                                                                               \
        Shape whole{shape[0], shape[1], shape[2], shape[3], shape[4]};                                                \
        (doubled ? convolve<Doubled, T> : convolve<Plain, T>)(x, weight, strides, bias, out, whole, shortcut, activate); \
    }

CONVOLUTIONS(f32, float)
CONVOLUTIONS(bf16, Bf16)

}  // extern "C"
