// 3x3 convolutions in fewer products; the definitions are in convolution.py.
//
// A tile is MADE x MADE pixels of the result. What it sees, SEEN x SEEN pixels, is mixed into KEPT x KEPT planes (spread),
// every plane is multiplied by a matrix of its own, channels by channels, and the sums are mixed into the tile (gather).
// One thread takes some tiles all the way, so that nothing of them leaves its cache.

#include <memory>

#include "products.h"

namespace {

// Two sums over three neighbours each, of four numbers in a row, in four products instead of six.
struct Plain {
    static constexpr Size SEEN = 4, KEPT = 4, MADE = 2, STEP = 2;
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

// Four such sums, of six numbers, in six products instead of twelve. The polynomials behind it are told by their values at
// 0, at plus and minus NEAR and FAR, and at infinity: of the points that were tried these lose least to rounding, half of
// what the usual ones do (0, 1, -1, 2, -2).
struct Wide {
    static constexpr Size SEEN = 6, KEPT = 6, MADE = 4, STEP = 4;
    static constexpr float NEAR = 0.70710678f, FAR = 1.41421356f;
    static void spread(const Lanes *in, Lanes *out) {
        Lanes near = in[4] - 2.0f * in[2], near_odd = NEAR * (in[3] - 2.0f * in[1]);
        Lanes far = in[4] - 0.5f * in[2], far_odd = FAR * (in[3] - 0.5f * in[1]);
        out[0] = in[0] - 2.5f * in[2] + in[4];
        out[1] = near + near_odd;
        out[2] = near - near_odd;
        out[3] = far + far_odd;
        out[4] = far - far_odd;
        out[5] = in[1] - 2.5f * in[3] + in[5];
    }
    static void mix(const Lanes *taps, Lanes *out) {
        Lanes near = (-1.0f / 3) * (2.0f * taps[0] + taps[2]), near_odd = (-2.0f / 3 * NEAR) * taps[1];
        Lanes far = (1.0f / 6) * (taps[0] + 2.0f * taps[2]), far_odd = (FAR / 6) * taps[1];
        out[0] = taps[0];
        out[1] = near + near_odd;
        out[2] = near - near_odd;
        out[3] = far + far_odd;
        out[4] = far - far_odd;
        out[5] = taps[2];
    }
    static void gather(const Lanes *in, Lanes *out) {
        Lanes near = in[1] + in[2], near_odd = NEAR * (in[1] - in[2]);
        Lanes far = in[3] + in[4], far_odd = FAR * (in[3] - in[4]);
        out[0] = in[0] + near + far;
        out[1] = near_odd + far_odd;
        out[2] = 0.5f * near + 2.0f * far;
        out[3] = 0.5f * near_odd + 2.0f * far_odd + in[5];
    }
};

// Two sums again, where the two in the middle are one pixel that was doubled: three products.
struct Doubled {
    static constexpr Size SEEN = 3, KEPT = 3, MADE = 2, STEP = 1;
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

// Pixels from which on wide tiles are worth mixing more than twice as many kernels. Rounded to bfloat16 what is mixed would
// lose too much in them.
constexpr Size MANY = 32 * 32;
template <typename T> constexpr bool PRECISE = sizeof(T) == sizeof(float);

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
#pragma GCC unroll 6
        for (Size b = 0; b < SEEN; ++b) {
            Lanes in[SEEN], out[KEPT];
#pragma GCC unroll 6
            for (Size a = 0; a < SEEN; ++a) in[a] = seen(a, b, c);
            Form::spread(in, out);
#pragma GCC unroll 6
            for (Size k = 0; k < KEPT; ++k) down[k][b] = out[k];
        }
#pragma GCC unroll 6
        for (Size k = 0; k < KEPT; ++k) {
            Form::spread(down[k], mixed);
#pragma GCC unroll 6
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

// What becomes of the sums: a bias unless it is null, x of a doubled picture, SiLU.
template <typename T> struct After {
    const T *bias;
    int shortcut, activate;
};

// Tiles of the whole picture that are made, and how they lie in it.
template <typename Form> struct Tiling {
    Size height, width, columns, count;
    Tiling(Shape shape) {
        constexpr Size SCALE = Form::MADE / Form::STEP;
        height = SCALE * shape.height, width = SCALE * shape.width;
        columns = (width + Form::MADE - 1) / Form::MADE, count = (height + Form::MADE - 1) / Form::MADE * columns;
    }

    // take(p, q, pixel) for those pixels of a tile that are in the picture.
    template <typename Take> void each(Size tile, Take take) const {
        Size top = Form::MADE * (tile / columns), start = Form::MADE * (tile % columns);
        for (Size p = 0; p < Form::MADE && top + p < height; ++p)
            for (Size q = 0; q < Form::MADE && start + q < width; ++q) take(p, q, (top + p) * width + start + q);
    }
};

// One strip of a tile: `sums` are those of its planes, `plane` apart; x is the picture that is added, or null.
template <typename Form, typename T>
inline void finish(
    const float *sums, Size plane, const T *x, T *out, Size c, Size tile, Tiling<Form> tiling, Shape shape, After<T> after
) {
    constexpr Size KEPT = Form::KEPT, MADE = Form::MADE;
    Size left = shape.out - c;
    Lanes down[MADE][KEPT], made[MADE][MADE], bias = after.bias ? load(after.bias + c, left) : Lanes{};
#pragma GCC unroll 6
    for (Size l = 0; l < KEPT; ++l) {
        Lanes in[KEPT], some[MADE];
#pragma GCC unroll 6
        for (Size k = 0; k < KEPT; ++k) in[k] = load(sums + (k * KEPT + l) * plane);
        Form::gather(in, some);
#pragma GCC unroll 6
        for (Size p = 0; p < MADE; ++p) down[p][l] = some[p];
    }
#pragma GCC unroll 6
    for (Size p = 0; p < MADE; ++p) Form::gather(down[p], made[p]);
    const T *small = x ? x + tile * shape.channels : nullptr;  // of a doubled picture a tile is a pixel
    tiling.each(tile, [&](Size p, Size q, Size pixel) {
        Lanes value = made[p][q] + bias;
        if (small) value += repeated(small, c, left, MADE * p + q, 4 * shape.out / shape.channels);
        store(out + pixel * shape.out + c, after.activate ? silu(value) : value, left);
    });
}

// x (b h w channels) to out (b h w out), or (b 2h 2w out) of a doubled picture.
template <typename Form, typename T>
void convolve(const T *x, const T *weight, const Size *strides, T *out, Shape shape, After<T> after) {
    using H = typename Factor<T>::Type;
    constexpr Size PLANES = Form::KEPT * Form::KEPT;
    const Tiling<Form> tiling(shape);
    // A line of the cache between rows: those a power of two apart would share few places in it.
    Size deep = padded(shape.channels), apart = deep + 64 / Size(sizeof(H)), strips = strips_of(shape.out);
    Size fitting = CACHE / (PLANES * deep * Size(sizeof(H))) / HEIGHT * HEIGHT;
    Size block = std::min(std::max(fitting, FEWEST), (tiling.count + HEIGHT - 1) / HEIGHT * HEIGHT);
    Size blocks = (tiling.count + block - 1) / block;
    std::unique_ptr<H[]> kernels(new H[strips * PLANES * deep * STRIP]);
    mix_kernels<Form>(weight, strides, kernels.get(), shape, deep);
#pragma omp parallel
    {
        std::vector<H> planes(PLANES * block * apart);
        std::vector<float> sums(PLANES * block * STRIP);
#pragma omp for collapse(2) schedule(dynamic)
        for (Size b = 0; b < shape.batch; ++b)
            for (Size some = 0; some < blocks; ++some) {
                Size start = some * block, end = std::min(start + block, tiling.count);
                const T *picture = x + b * shape.height * shape.width * shape.channels;
                T *to = out + b * tiling.height * tiling.width * shape.out;
                for (Size tile = start; tile < end; ++tile) {
                    Size top = Form::STEP * (tile / tiling.columns) - 1, left = Form::STEP * (tile % tiling.columns) - 1;
                    bool inside = top >= 0 && left >= 0 && top + Form::SEEN <= shape.height &&
                        left + Form::SEEN <= shape.width && shape.channels % LANES == 0;
                    (inside ? spread<Form, true, T, H> : spread<Form, false, T, H>)(
                        picture, planes.data() + (tile - start) * apart, block * apart, top, left, shape
                    );
                }
                for (Size strip = 0; strip < strips; ++strip) {
                    for (Size k = 0; k < PLANES; ++k)
                        for (Size t = 0; t < end - start; t += HEIGHT)
                            multiply_strip(
                                planes.data() + (k * block + t) * apart, apart, deep,
                                kernels.get() + (strip * PLANES + k) * deep * STRIP, sums.data() + (k * block + t) * STRIP
                            );
                    for (Size tile = start; tile < end; ++tile)
                        for (Size c = strip * STRIP; c < std::min((strip + 1) * STRIP, shape.out); c += LANES) {
                            const float *near = sums.data() + (tile - start) * STRIP + c - strip * STRIP;
                            const T *added = after.shortcut ? picture : nullptr;
                            finish(near, block * STRIP, added, to, c, tile, tiling, shape, after);
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
        bool wide = PRECISE<T> && whole.batch * whole.height * whole.width >= MANY;                                   \
        auto convolution = doubled ? convolve<Doubled, T> : wide ? convolve<Wide, T> : convolve<Plain, T>;            \
        convolution(x, weight, strides, out, whole, After<T>{bias, shortcut, activate});                              \
    }

CONVOLUTIONS(f32, float)
CONVOLUTIONS(bf16, Bf16)

}  // extern "C"
