/* Vectors of floats as wide as the processor has them, and the few operations that C cannot say.
 *
 * The arithmetic (docs/numerics.md) speaks of tiles of 16 lanes. A tile is PARTS vectors of WIDTH floats: 1 x 16 with
 * AVX-512, 2 x 8 with AVX2, 4 x 4 elsewhere. Every lane computes by itself, so the width cannot change a bit. Build
 * with -ffp-contract=off: the only fused multiplications are those that `fused` writes. */
#ifndef LANES_H
#define LANES_H

#include <float.h>
#include <stdint.h>
#include <string.h>

#if FLT_EVAL_METHOD != 0
#error "floats must be computed as floats"
#endif

#define LANES 16
#if defined(__AVX512F__) && !defined(NATIVE_PLAIN)
#define WIDTH 16
#elif defined(__AVX2__) && !defined(NATIVE_PLAIN)
#define WIDTH 8
#else
#define WIDTH 4
#endif
#define PARTS (LANES / WIDTH)

#if WIDTH > 4
#include <immintrin.h>
#elif defined(__aarch64__) && !defined(NATIVE_PLAIN)
#define NATIVE_NEON
#include <arm_neon.h>
#elif defined(__x86_64__)
#include <xmmintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

typedef float vec __attribute__((vector_size(4 * WIDTH)));
typedef int32_t ivec __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t uvec __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t hvec __attribute__((vector_size(2 * WIDTH)));
typedef int8_t bvec __attribute__((vector_size(WIDTH)));

/* 1.5 * 2^23: a float below 2^22 plus this has the nearest integer (ties to even) in its low bits. */
#define ROUNDER 12582912.0f
#define ROUNDER_BITS 0x4b400000

INLINE float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
INLINE uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

INLINE vec load(const float *from) {
    vec value;
    memcpy(&value, from, sizeof value);
    return value;
}
INLINE void store(float *to, vec value) { memcpy(to, &value, sizeof value); }
INLINE vec all(float value) { return value - (vec){0}; }
INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }
INLINE vec greater(vec a, vec b) { return choose(a > b, a, b); }
INLINE vec lesser(vec a, vec b) { return choose(a < b, a, b); }
INLINE vec magnitude(vec a) { return (vec)((uvec)a & 0x7fffffff); }

/* a * b + c, rounded once. */
INLINE vec fused(vec a, vec b, vec c) {
#if WIDTH == 16
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif WIDTH == 8
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(NATIVE_NEON)
    return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    vec out;
    for (int i = 0; i < WIDTH; i++) out[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return out;
#endif
}

/* fp16 to fp32; exact. Not for infinities and NaN, which nobody stores. */
INLINE vec widen_half(const uint16_t *from) {
#if WIDTH == 16
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
#elif WIDTH == 8
    return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
#else
    hvec half;
    memcpy(&half, from, sizeof half);
    uvec bits = __builtin_convertvector(half, uvec);
    vec moved = (vec)((bits & 0x7fff) << 13) * 0x1p112f; /* the exponent's bias is 15 there, 127 here */
    return (vec)((uvec)moved | (bits & 0x8000) << 16);
#endif
}

/* fp32 to fp16, to nearest, ties to even, after clamping to what fp16 holds. */
INLINE void narrow_half(uint16_t *to, vec value) {
    value = greater(lesser(value, all(65504.0f)), all(-65504.0f));
#if WIDTH == 16
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT));
#elif WIDTH == 8
    _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
#else
    uvec bits = (uvec)magnitude(value);
    uvec normal = (bits + 0xfff + (bits >> 13 & 1)) - (112u << 23);
    uvec small = (uvec)((vec)bits + 0.5f) - 0x3f000000; /* the sum's last bit is fp16's smallest number */
    uvec tiny = (uvec)(bits < 0x38800000);
    uvec half = ((tiny & small) | (~tiny & normal >> 13)) | ((uvec)value >> 16 & 0x8000);
    hvec packed = __builtin_convertvector(half, hvec);
    memcpy(to, &packed, sizeof packed);
#endif
}

INLINE float half_of(uint16_t half) {
    float moved = as_float((uint32_t)(half & 0x7fff) << 13) * 0x1p112f;
    return as_float(as_bits(moved) | (uint32_t)(half & 0x8000) << 16);
}

INLINE uint16_t to_half(float value) {
    uint16_t half[LANES];
    narrow_half(half, all(value));
    return half[0];
}

INLINE vec widen_bf16(const uint16_t *from) {
    hvec upper;
    memcpy(&upper, from, sizeof upper);
    return (vec)(__builtin_convertvector(upper, uvec) << 16);
}

/* One tile's lanes added up: lane i and lane i + 8, then + 4, + 2, + 1. */
INLINE float fold_sum(const vec tile[PARTS]) {
    float lane[LANES];
    memcpy(lane, tile, sizeof lane);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lane[i] = lane[i] + lane[i + half];
    return lane[0];
}
INLINE float fold_greatest(const vec tile[PARTS]) {
    float lane[LANES];
    memcpy(lane, tile, sizeof lane);
    float most = lane[0];
    for (int i = 1; i < LANES; i++) most = lane[i] > most ? lane[i] : most;
    return most;
}

/* The nearest integers, ties to even, of values below 2^22. */
INLINE ivec nearest(vec value) { return (ivec)(value + ROUNDER) - ROUNDER_BITS; }

/* Round to nearest, keep denormals: whatever the caller's thread was set to. The old state, for `restore_rounding`. */
INLINE uint64_t set_rounding(void) {
#if defined(__x86_64__)
    uint64_t before = _mm_getcsr();
    _mm_setcsr(0x1f80);
    return before;
#elif defined(__aarch64__)
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(0ul));
    return before;
#else
    return 0;
#endif
}
INLINE void restore_rounding(uint64_t before) {
#if defined(__x86_64__)
    _mm_setcsr((unsigned)before);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(before));
#else
    (void)before;
#endif
}

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

/* The lanes of two vectors taking turns: of their lower halves, of their upper ones. */
INLINE vec zip_lower(vec a, vec b) {
#if WIDTH == 16
    return SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif WIDTH == 8
    return SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
    return SHUFFLE(a, b, 0, 4, 1, 5);
#endif
}
INLINE vec zip_upper(vec a, vec b) {
#if WIDTH == 16
    return SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif WIDTH == 8
    return SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
    return SHUFFLE(a, b, 2, 6, 3, 7);
#endif
}

/* WIDTH vectors become their columns: each round moves one bit of a number's place from its row to its lane. */
INLINE void transpose(vec *rows) {
    UNROLL for (int round = 1; round < WIDTH; round *= 2) {
        vec zipped[WIDTH];
        UNROLL for (int i = 0; i < WIDTH / 2; i++) {
            zipped[2 * i] = zip_lower(rows[i], rows[i + WIDTH / 2]);
            zipped[2 * i + 1] = zip_upper(rows[i], rows[i + WIDTH / 2]);
        }
        UNROLL for (int i = 0; i < WIDTH; i++) rows[i] = zipped[i];
    }
}

INLINE int least(int a, int b) { return a < b ? a : b; }
INLINE int most(int a, int b) { return a > b ? a : b; }

#endif
