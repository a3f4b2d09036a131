/* The arithmetic of the encoder, for WebAssembly with 128-bit SIMD; `python -m cpips.browser --kernel` compiles it to kernel.js.
 *
 * Features are float32 with channels last, and the caller pads their channels to a multiple of 8 with zeros. The caller also lays out
 * the memory: nothing is allocated here.
 */

#include <wasm_simd128.h>

/* The sums of `channels` outputs, eight at a time, for `pixels` (1 or 4) places that are `step` floats apart: eight accumulators stay
 * in registers. The input of a place is `segments` runs of `length` floats, `pitch` floats apart. */
static inline __attribute__((always_inline))
void sums(const float *in, long segments, long length, long pitch, long step, const float *weight, const float *bias, long channels, float *out,
          const int pixels) {
    for (long c = 0; c < channels; c += 8) {
        v128_t low[4], high[4];
        for (int p = 0; p < pixels; p++)
            low[p] = wasm_v128_load(bias + c), high[p] = wasm_v128_load(bias + c + 4);
        const float *w = weight + c;
        for (long s = 0; s < segments; s++) {
            const float *x = in + s * pitch;
            for (long k = 0; k < length; k++, x++, w += channels) {
                v128_t w0 = wasm_v128_load(w), w1 = wasm_v128_load(w + 4);
                for (int p = 0; p < pixels; p++) {
                    v128_t v = wasm_v128_load32_splat(x + p * step);
                    low[p] = wasm_f32x4_add(low[p], wasm_f32x4_mul(v, w0));
                    high[p] = wasm_f32x4_add(high[p], wasm_f32x4_mul(v, w1));
                }
            }
        }
        for (int p = 0; p < pixels; p++) {
            wasm_v128_store(out + p * channels + c, low[p]);
            wasm_v128_store(out + p * channels + c + 4, high[p]);
        }
    }
}

/* A row of `count` outputs of a convolution, whose inputs are `step` floats apart. */
__attribute__((export_name("row")))
void row(const float *in, long segments, long length, long pitch, long step, const float *weight, const float *bias, long channels, float *out,
         long count) {
    long i = 0;
    for (; i + 4 <= count; i += 4)
        sums(in + i * step, segments, length, pitch, step, weight, bias, channels, out + i * channels, 4);
    for (; i < count; i++)
        sums(in + i * step, segments, length, pitch, step, weight, bias, channels, out + i * channels, 1);
}

/* x * x, into `out`. */
__attribute__((export_name("square")))
void square(const float *x, float *out, long count) {
    for (long i = 0; i < count; i += 4) {
        v128_t v = wasm_v128_load(x + i);
        wasm_v128_store(out + i, wasm_f32x4_mul(v, v));
    }
}

/* x / sqrt(norm), in place: the end of a generalized divisive normalization. */
__attribute__((export_name("divide")))
void divide(float *x, const float *norm, long count) {
    for (long i = 0; i < count; i += 4)
        wasm_v128_store(x + i, wasm_f32x4_div(wasm_v128_load(x + i), wasm_f32x4_sqrt(wasm_v128_load(norm + i))));
}

/* sqrt(x + eps), in place. */
__attribute__((export_name("root")))
void root(float *x, float eps, long count) {
    for (long i = 0; i < count; i += 4)
        wasm_v128_store(x + i, wasm_f32x4_sqrt(wasm_f32x4_add(wasm_v128_load(x + i), wasm_f32x4_splat(eps))));
}

/* Means (of squares, if `squares`) over windows of `window` x `window` cells, or of what the map has of them: `rows` x `columns` cells of
 * `channels`, rows `pitch` floats apart, to ceil(rows / window) x ceil(columns / window) cells without gaps. */
__attribute__((export_name("pool")))
void pool(const float *in, long rows, long columns, long channels, long pitch, long window, long squares, float *out) {
    for (long top = 0; top < rows; top += window)
        for (long left = 0; left < columns; left += window) {
            long height = rows - top < window ? rows - top : window, width = columns - left < window ? columns - left : window;
            v128_t count = wasm_f32x4_splat((float)(height * width));
            for (long c = 0; c < channels; c += 4, out += 4) {
                v128_t sum = wasm_f32x4_splat(0);
                for (long y = 0; y < height; y++)
                    for (long x = 0; x < width; x++) {
                        v128_t v = wasm_v128_load(in + (top + y) * pitch + (left + x) * channels + c);
                        sum = wasm_f32x4_add(sum, squares ? wasm_f32x4_mul(v, v) : v);
                    }
                wasm_v128_store(out, wasm_f32x4_div(sum, count));
            }
        }
}
