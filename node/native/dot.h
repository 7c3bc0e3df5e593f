/* The exact integer products of a group: what each instruction set does in its own way, with the same sums.
 *
 * `sums` is [rows][tiles][PARTS]. The codes of tile t begin at codes + t * tile_step, those of row r at q + r * row_step;
 * `totals`, the sums of a row's codes in its group, at totals + r * total_step. INT8 weights count as code - 128, INT4
 * as the code itself. `rows` and `tiles` are constants wherever this is used. */
#ifndef DOT_H
#define DOT_H

#include "lanes.h"

/* Of the tiles and of the sums that one pass has at once. */
#define MOST_VECTORS (4 * PARTS)
#define MOST_SUMS (16 * PARTS)

#define PART_BYTES (4 * WIDTH)
#define FOR_EACH(name, count) UNROLL for (int name = 0; name < (count); name++)

INLINE int32_t four(const int8_t *from) {
    int32_t codes;
    memcpy(&codes, from, 4);
    return codes;
}

#if WIDTH == 16
typedef __m512i bytes;
INLINE bytes codes_at(const uint8_t *from) { return _mm512_loadu_si512(from); }
INLINE bytes repeat(int32_t codes) { return _mm512_set1_epi32(codes); }
INLINE bytes low_nibbles(bytes both) { return _mm512_and_si512(both, _mm512_set1_epi8(15)); }
INLINE bytes high_nibbles(bytes both) { return low_nibbles(_mm512_srli_epi16(both, 4)); }
INLINE ivec dot_add(ivec sum, bytes weights, bytes codes) {
    return (ivec)_mm512_dpbusd_epi32((__m512i)sum, weights, codes);
}
#elif WIDTH == 8
typedef __m256i bytes;
INLINE bytes codes_at(const uint8_t *from) { return _mm256_loadu_si256((const __m256i *)from); }
INLINE bytes repeat(int32_t codes) { return _mm256_set1_epi32(codes); }
INLINE bytes low_nibbles(bytes both) { return _mm256_and_si256(both, _mm256_set1_epi8(15)); }
INLINE bytes high_nibbles(bytes both) { return low_nibbles(_mm256_srli_epi16(both, 4)); }
#ifdef __AVXVNNI__
INLINE ivec dot_add(ivec sum, bytes weights, bytes codes) {
    return (ivec)_mm256_dpbusd_avx_epi32((__m256i)sum, weights, codes);
}
#endif
#elif defined(NATIVE_NEON)
typedef int8x16_t bytes;
INLINE bytes codes_at(const uint8_t *from) { return vreinterpretq_s8_u8(vld1q_u8(from)); }
INLINE bytes repeat(int32_t codes) { return vreinterpretq_s8_s32(vdupq_n_s32(codes)); }
INLINE bytes low_nibbles(bytes both) { return vandq_s8(both, vdupq_n_s8(15)); }
INLINE bytes high_nibbles(bytes both) { return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(both), 4)); }
/* Both signed. */
INLINE ivec dot_add(ivec sum, bytes weights, bytes codes) {
#ifdef __ARM_FEATURE_DOTPROD
    return (ivec)vdotq_s32((int32x4_t)sum, weights, codes);
#else
    int16x8_t low = vmull_s8(vget_low_s8(weights), vget_low_s8(codes)), high = vmull_high_s8(weights, codes);
    return (ivec)vaddq_s32((int32x4_t)sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
}
#endif

#if WIDTH == 16 || defined(__AVXVNNI__) || defined(NATIVE_NEON)
INLINE void dot_int8(ivec *sums, int rows, int tiles, const uint8_t *codes, size_t tile_step, const int8_t *q,
                     size_t row_step, const int32_t *totals, size_t total_step) {
    FOR_EACH(r, rows) FOR_EACH(c, tiles * PARTS) {
#ifdef NATIVE_NEON
        sums[r * tiles * PARTS + c] = (ivec){0};
#else /* codes count as they are, from 0 to 255 */
        sums[r * tiles * PARTS + c] = (ivec){0} - 128 * totals[r * total_step];
#endif
    }
    (void)totals;
    (void)total_step;
    FOR_EACH(quad, 8) {
        bytes weights[MOST_VECTORS];
        FOR_EACH(t, tiles) FOR_EACH(p, PARTS) {
            bytes w = codes_at(codes + t * tile_step + quad * 64 + p * PART_BYTES);
#ifdef NATIVE_NEON
            w = veorq_s8(w, vdupq_n_s8(-128));
#endif
            weights[t * PARTS + p] = w;
        }
        FOR_EACH(r, rows) {
            bytes four_codes = repeat(four(q + r * row_step + quad * 4));
            FOR_EACH(c, tiles * PARTS) {
                ivec *sum = sums + r * tiles * PARTS + c;
                *sum = dot_add(*sum, weights[c], four_codes);
            }
        }
    }
}

INLINE ivec nibbles_add(ivec sum, bytes low, bytes first, bytes high, bytes second) {
    return dot_add(dot_add(sum, low, first), high, second);
}

INLINE ivec nibbles_total(ivec sum) { return sum; }

#elif WIDTH == 8

/* |w| times q with the sign of w: no pair of products passes 2 * 127 * 127, which 16 bits hold. */
INLINE void dot_int8(ivec *sums, int rows, int tiles, const uint8_t *codes, size_t tile_step, const int8_t *q,
                     size_t row_step, const int32_t *totals, size_t total_step) {
    (void)totals;
    (void)total_step;
    FOR_EACH(i, rows * tiles * PARTS) sums[i] = (ivec){0};
    FOR_EACH(quad, 8) {
        bytes weights[MOST_VECTORS], sizes[MOST_VECTORS];
        FOR_EACH(t, tiles) FOR_EACH(p, PARTS) {
            bytes w = codes_at(codes + t * tile_step + quad * 64 + p * PART_BYTES);
            weights[t * PARTS + p] = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
            sizes[t * PARTS + p] = _mm256_abs_epi8(weights[t * PARTS + p]);
        }
        FOR_EACH(r, rows) {
            bytes four_codes = repeat(four(q + r * row_step + quad * 4));
            FOR_EACH(c, tiles * PARTS) {
                bytes pairs = _mm256_maddubs_epi16(sizes[c], _mm256_sign_epi8(four_codes, weights[c]));
                sums[r * tiles * PARTS + c] += (ivec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
            }
        }
    }
}

/* A whole group of pairs, 8 * 2 * 15 * 127, stays below 2^15: 16 bits hold it until the end. */
INLINE ivec nibbles_add(ivec sum, bytes low, bytes first, bytes high, bytes second) {
    bytes pairs = _mm256_add_epi16(_mm256_maddubs_epi16(low, first), _mm256_maddubs_epi16(high, second));
    return (ivec)_mm256_add_epi16((__m256i)sum, pairs);
}

INLINE ivec nibbles_total(ivec sum) { return (ivec)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(1)); }

#else /* plain C: what the others have to equal */
#define DOT_PLAIN

INLINE void dot_int8(ivec *sums, int rows, int tiles, const uint8_t *codes, size_t tile_step, const int8_t *q,
                     size_t row_step, const int32_t *totals, size_t total_step) {
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < tiles; t++)
            for (int lane = 0; lane < LANES; lane++) {
                int32_t sum = -128 * totals[r * total_step];
                for (int k = 0; k < 32; k++)
                    sum += codes[t * tile_step + k / 4 * 64 + lane * 4 + k % 4] * q[r * row_step + k];
                sums[(r * tiles + t) * PARTS + lane / WIDTH][lane % WIDTH] = sum;
            }
}

INLINE void dot_int4(ivec *sums, int rows, int tiles, const uint8_t *codes, size_t tile_step, const int8_t *q,
                     size_t row_step) {
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < tiles; t++)
            for (int lane = 0; lane < LANES; lane++) {
                int32_t sum = 0;
                for (int k = 0; k < 32; k++)
                    sum += (codes[t * tile_step + k / 8 * 64 + lane * 4 + k % 4] >> (k / 4 % 2 * 4) & 15) *
                           q[r * row_step + k];
                sums[(r * tiles + t) * PARTS + lane / WIDTH][lane % WIDTH] = sum;
            }
}

#endif

#ifndef DOT_PLAIN
/* Two vectors of codes from one of bytes; how their products are added, and when they are 32 bits wide, is said above. */
INLINE void dot_int4(ivec *sums, int rows, int tiles, const uint8_t *codes, size_t tile_step, const int8_t *q,
                     size_t row_step) {
    FOR_EACH(i, rows * tiles * PARTS) sums[i] = (ivec){0};
    FOR_EACH(pair, 4) {
        bytes low[MOST_VECTORS], high[MOST_VECTORS];
        FOR_EACH(t, tiles) FOR_EACH(p, PARTS) {
            bytes both = codes_at(codes + t * tile_step + pair * 64 + p * PART_BYTES);
            low[t * PARTS + p] = low_nibbles(both);
            high[t * PARTS + p] = high_nibbles(both);
        }
        FOR_EACH(r, rows) {
            bytes first = repeat(four(q + r * row_step + pair * 8));
            bytes second = repeat(four(q + r * row_step + pair * 8 + 4));
            FOR_EACH(c, tiles * PARTS) {
                ivec *sum = sums + r * tiles * PARTS + c;
                *sum = nibbles_add(*sum, low[c], first, high[c], second);
            }
        }
    }
    FOR_EACH(i, rows * tiles * PARTS) sums[i] = nibbles_total(sums[i]);
}
#endif
#endif
