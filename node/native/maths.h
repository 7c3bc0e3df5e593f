/* The elementary functions of docs/numerics.md: no library's, so that every machine gives the same bits. */
#ifndef MATHS_H
#define MATHS_H

#include "lanes.h"
#include "model.h"

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

/* Near 0 Taylor's series; elsewhere by e^(-2|x|), with the sign of x. */
INLINE vec hyperbolic_tangent(vec x) {
    vec size = magnitude(x), square = x * x, power = exponential(-2.0f * size);
    vec series = all(-1382.0f / 155925);
    series = fused(series, square, all(62.0f / 2835));
    series = fused(series, square, all(-17.0f / 315));
    series = fused(series, square, all(2.0f / 15));
    series = fused(series, square, all(-1.0f / 3));
    series = fused(series, square, all(1.0f));
    vec far = (1.0f - power) / (1.0f + power);
    vec signed_far = (vec)((uvec)far | ((uvec)x & 0x80000000));
    return choose(size < all(0.25f), x * series, signed_far);
}

/* x bent to stay between -cap and cap. */
INLINE vec bent(vec x, float cap) { return cap * hyperbolic_tangent(x / cap); }

/* 0: SiLU. 1: GELU in its tanh form, which is x * logistic(2 * sqrt(2 / pi) * (x + 0.044715 x^3)). 2: squared ReLU. */
INLINE vec activate(int kind, vec x) {
    if (kind == 0) return x * logistic(x);
    if (kind == 2) {
        vec positive = greater(x, all(0.0f));
        return positive * positive;
    }
    vec inner = fused((x * x) * x, all(0.044715f), x);
    return x * logistic(1.5957691216057308f * inner);
}

/* What a gate lets through. 3: SiLU with a factor; neither is beyond 7, and what is let through is one more. */
INLINE vec let_through(int kind, vec gate, vec up) {
    if (kind != 3) return activate(kind, gate) * up;
    const vec low = lesser(gate, all(7.0f));
    return low * logistic(1.702f * low) * (greater(lesser(up, all(7.0f)), all(-7.0f)) + 1.0f);
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

/* The mean of `count` numbers, a multiple of 16. */
INLINE float mean_of(const float *row, int count) {
    vec sums[PARTS] = {{0}};
    for (int i = 0; i < count; i += LANES)
        for (int p = 0; p < PARTS; p++) sums[p] = sums[p] + load(row + i + p * WIDTH);
    return fold_sum(sums) / (float)count;
}

/* out = (row - mean) / sqrt(mean of squares + epsilon) * weight + bias; the mean is 0 where rows are not centred.
   `out` may be `row`; `count` is a multiple of 16. */
INLINE void normalise(float *out, const float *row, Norm norm, int count, int centred, float epsilon) {
    const float mean = centred ? mean_of(row, count) : 0.0f;
    vec squares[PARTS] = {{0}};
    for (int i = 0; i < count; i += LANES)
        for (int p = 0; p < PARTS; p++) {
            vec x = load(row + i + p * WIDTH) - mean;
            squares[p] = fused(x, x, squares[p]);
        }
    float scale = 1.0f / __builtin_sqrtf(fold_sum(squares) / (float)count + epsilon);
    for (int i = 0; i < count; i += WIDTH) {
        vec y = (load(row + i) - mean) * scale * load(norm.weight + i);
        store(out + i, norm.bias ? y + load(norm.bias + i) : y);
    }
}

#endif
