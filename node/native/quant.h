/* Numbers in eight bits and in four.
 *
 * Weights lie in tiles of 16 rows. INT8 and INT4 go along a row in groups of 32; a group of a tile is
 *   INT8  512 bytes [8][16 rows][4], code + 128; 16 scales in fp16
 *   INT4  256 bytes [4][16 rows][4], two codes each, the low four bits 4 numbers before the high; 16 scales, 16 minima
 * F32 and BF16 are [ins][16 rows]. */
#ifndef QUANT_H
#define QUANT_H

#include <stddef.h>

#include "model.h"
#include "team.h"

/* Rows of activations, as floats and as groups of 32 codes. */
typedef struct {
    float *values;
    int8_t *codes;
    float *scales;   /* one for each group */
    float *weighted; /* scale * sum of the codes */
    int32_t *sums;   /* of the codes */
} Rows;

/* The bytes of `codes` and of `scales` for so many rows (a multiple of 16) of `ins` numbers. */
size_t native_code_bytes(int kind, int64_t outs, int64_t ins);
size_t native_scale_bytes(int kind, int64_t outs, int64_t ins);

/* Packs `outs` rows, a multiple of 16, of row-major fp32. 0, or 1 where a weight is not finite or too large. */
int native_pack(Team *team, int kind, int32_t outs, int32_t ins, const float *weights, void *codes, uint16_t *scales);

/* Codes of `count` numbers, a multiple of 32, of `rows` from number `at` on. */
void quantise(Rows rows, size_t at, int count);

/* The same rows from their `number`-th number on, a multiple of 32. */
static inline Rows rows_from(Rows rows, size_t number) {
    return (Rows){rows.values + number, rows.codes + number, rows.scales + number / GROUP,
                  rows.weighted + number / GROUP, rows.sums + number / GROUP};
}

static inline int is_quantised(int kind) { return kind == INT8 || kind == INT4; }

#endif
