/* The elementary functions of docs/numerics.md: no library's, so that every machine gives the same bits. */
#ifndef MATHS_H
#define MATHS_H

#include "lanes.h"

/* e^x for |x| <= 86, beyond which x is taken as 86: Taylor's series of the remainder, powers of two by the exponent. */
INLINE vec exponential(vec x) {
    x = greater(lesser(x, all(86.0f)), all(-86.0f));
    vec shifted = fused(x, all(0x1.715476p+0f), all(ROUNDER)); /* log2(e) */
    vec power = shifted - ROUNDER;
    vec rest = fused(power, all(-0x1.62e4p-1f), x); /* ln 2 in two parts: the first has 15 bits */
    rest = fused(power, all(-0x1.7f7d1cp-20f), rest);
    vec sum = all(1.0f / 5040);
    sum = fused(sum, rest, all(1.0f / 720));
    sum = fused(sum, rest, all(1.0f / 120));
    sum = fused(sum, rest, all(1.0f / 24));
    sum = fused(sum, rest, all(1.0f / 6));
    sum = fused(sum, rest, all(0.5f));
    sum = fused(sum, rest, all(1.0f));
    sum = fused(sum, rest, all(1.0f));
    return (vec)((ivec)sum + ((ivec)shifted << 23));
}

INLINE float exponential_of(float x) { return exponential(all(x))[0]; }

INLINE vec logistic(vec x) { return 1.0f / (1.0f + exponential(0.0f - x)); }

/* 0: SiLU. 1: GELU in its tanh form, which is x * logistic(2 * sqrt(2 / pi) * (x + 0.044715 x^3)). */
INLINE vec activate(int kind, vec x) {
    if (kind == 0) return x * logistic(x);
    vec inner = fused((x * x) * x, all(0.044715f), x);
    return x * logistic(1.5957691216057308f * inner);
}

/* Sine and cosine of an angle below 2^20, in double precision without fused multiplications. */
INLINE void sine_cosine(double angle, float *sine, float *cosine) {
    double turns = (angle * 0x1.45f306dc9c883p-1 + 0x1.8p52) - 0x1.8p52; /* quarters, to the nearest */
    /* pi / 2 in three parts of 33 bits and the rest: the first products are exact */
    double rest = ((angle - turns * 0x1.921fb544p+0) - turns * 0x1.0b4611a6p-34) - turns * 0x1.3198a2e037073p-69;
    double square = rest * rest, odd = 0, even = 0;
    static const double odd_terms[] = {
        -1.0 / 1307674368000.0, 1.0 / 6227020800.0, -1.0 / 39916800.0, 1.0 / 362880.0, -1.0 / 5040.0, 1.0 / 120.0,
        -1.0 / 6.0, 1.0};
    static const double even_terms[] = {
        1.0 / 20922789888000.0, -1.0 / 87178291200.0, 1.0 / 479001600.0, -1.0 / 3628800.0, 1.0 / 40320.0,
        -1.0 / 720.0, 1.0 / 24.0, -0.5, 1.0};
    for (int i = 0; i < 8; i++) odd = odd * square + odd_terms[i];
    for (int i = 0; i < 9; i++) even = even * square + even_terms[i];
    odd = odd * rest;
    int quarter = (int)turns & 3;
    double s = quarter & 1 ? even : odd, c = quarter & 1 ? odd : even;
    *sine = (float)(quarter & 2 ? -s : s);
    *cosine = (float)(quarter == 1 || quarter == 2 ? -c : c);
}

/* out = row / sqrt(mean of squares + epsilon) * weight; `out` may be `row`. `count` is a multiple of 16. */
INLINE void rms_norm(float *out, const float *row, const float *weight, int count, float epsilon) {
    vec squares[PARTS] = {{0}};
    for (int i = 0; i < count; i += LANES)
        for (int p = 0; p < PARTS; p++) {
            vec x = load(row + i + p * WIDTH);
            squares[p] = fused(x, x, squares[p]);
        }
    float scale = 1.0f / __builtin_sqrtf(fold_sum(squares) / (float)count + epsilon);
    for (int i = 0; i < count; i += WIDTH) store(out + i, load(row + i) * scale * load(weight + i));
}

#endif
