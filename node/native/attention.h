/* Keys and values in pages, and what rows take from them.
 *
 * A page holds BLOCK positions of one layer, by sixteen: for each 16 positions, for each head, the keys [head_dim][16]
 * and the values [16][head_dim]. So a page may be cut off after any 16 positions, and one that is being filled is
 * touched only as far as it is. Latents are one head of keys, of which the first `latent` numbers are the values too. */
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
    int first; /* row of the batch that is the first one of `queries` and `out` */
    int group; /* heads of queries that a visit takes at once */
    const float *queries;
    size_t query_stride;
    Rows out;
    size_t out_row, out_head; /* numbers from one row's results, and from one head's, to the next's */
    int quantised;
    float *own; /* this member's, `attention_floats` of them */
} Attention;

/* Rows of one session that make a unit, and the floats that a member needs for one. */
int unit_rows(const Model *model);
size_t attention_floats(const Model *model);

/* Heads of queries that a visit takes where so many members share so many units. */
int heads_at_once(const Model *model, int units, int members);

/* A row's key and value of one head go into the page; no value where the key is a latent. */
void store_position(const Attention *job, int row, int head, const float *key, const float *value);

/* The rows of a unit over all positions that they see, for `group` heads of queries, which share a head of keys: the
 * `part`-th of such groups. */
void attend(const Attention *job, const Unit *unit, int part);

#endif
