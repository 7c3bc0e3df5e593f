/* Products of rows and matrices: one output is one chain of fused multiplications, in rising order. */
#ifndef GEMM_H
#define GEMM_H

#include "dot.h"
#include "quant.h"

/* Rows and tiles that one pass over the weights takes, by what fits the registers. */
#if WIDTH == 16
#define PASS_ROWS 4
#define PASS_TILES 4
#define QUANT_ROWS 4
#define QUANT_TILES 2
#elif WIDTH == 8
#define PASS_ROWS 3
#define PASS_TILES 2
#define QUANT_ROWS 3
#define QUANT_TILES 1
#else
#define PASS_ROWS 2
#define PASS_TILES 2
#define QUANT_ROWS 2
#define QUANT_TILES 1
#endif

enum { HALVES = 16 }; /* beside the kinds of `model.h`: fp16, as pages hold it */

INLINE vec widen(int kind, const char *from) {
    if (kind == F32) return load((const float *)from);
    if (kind == BF16) return widen_bf16((const uint16_t *)from);
    return widen_half((const uint16_t *)from);
}

/* sums[r][t] = fused(matrix[i][t], x[r][i], sums[r][t]) for i rising; the tiles of one i lie tile_step bytes apart. */
INLINE void chain(vec *sums, int rows, int tiles, int kind, const char *matrix, size_t step, size_t tile_step,
                  const float *x, size_t row_step, int count) {
    const int size = kind == F32 ? 4 : 2;
    for (int i = 0; i < count; i++, matrix += step) {
        vec column[MOST_VECTORS];
        FOR_EACH(t, tiles) FOR_EACH(p, PARTS)
            column[t * PARTS + p] = widen(kind, matrix + t * tile_step + p * WIDTH * size);
        FOR_EACH(r, rows) {
            vec factor = all(x[r * row_step + i]);
            FOR_EACH(c, tiles * PARTS) {
                vec *sum = sums + r * tiles * PARTS + c;
                *sum = fused(column[c], factor, *sum);
            }
        }
    }
}

/* What becomes of a product: out = y + bias, or out = fused(y + bias, scale, out). Rows of `out` lie `stride` apart. */
typedef struct {
    float *values;
    size_t stride;
    int add;
    float scale;
} Out;

typedef struct {
    const Linear *weights;
    Rows in;
    int rows;
    Out out;
} Product;

/* y = W x for the rows of each product; every member of the team calls it, and it ends with `team_wait`. */
void products(Team *team, const Product *all, int count);

static inline void linear(Team *team, const Linear *weights, Rows in, int rows, Out out) {
    const Product one = {weights, in, rows, out};
    products(team, &one, 1);
}

#endif
