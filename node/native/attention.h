/* Keys and values in pages, and what rows take from them.
 *
 * A page holds BLOCK positions of one layer, by sixteen: for each 16 positions, for each head, the keys [head_dim][16]
 * and the values [16][head_dim]. So a page may be cut off after any 16 positions, and one that is being filled is
 * touched only as far as it is. */
#ifndef ATTENTION_H
#define ATTENTION_H

#include "model.h"
#include "quant.h"

/* Neighbouring rows of one session that go over its keys and values together. */
typedef struct {
    int32_t row, count, session;
} Unit;

typedef struct {
    const Model *model;
    const Batch *batch;
    const Layer *layer;
    int index; /* of the layer, from the batch's first */
    const float *queries;
    size_t query_stride;
    Rows out; /* [rows][heads * head_dim] */
    int quantised;
    float *own; /* this member's, `attention_floats` of them */
} Attention;

/* Rows of one session that make a unit, and the floats that a member needs for one. */
int unit_rows(const Model *model);
size_t attention_floats(const Model *model);

/* Where a position's key of one head lies; its value lies head_dim * 16 numbers on, and both are `store_position`'s. */
void store_position(const Attention *job, int row, int head, const float *key, const float *value);

/* The rows of a unit over all positions that they see, for one head of keys and the queries that share it. */
void attend(const Attention *job, const Unit *unit, int head);

#endif
