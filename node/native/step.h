/* What all threads of a team share while rows of several sessions go through blocks. */
#ifndef STEP_H
#define STEP_H

#include "attention.h"
#include "experts.h"

/* Rows that go from queries to values by way of latents at once: what lies between is large. */
#define LATENT_ROWS 64

/* Queries that meet latents, and what they find. All but `ranked` of LATENT_ROWS rows. */
typedef struct {
    Rows ranked;    /* [rows][query_rank], normed: what queries are made of */
    float *heads;   /* [rows][heads][own and turning numbers], where they are not in `qkv` */
    Rows own;       /* [heads][rows][own] */
    float *queries; /* [rows][heads][head_dim] */
    Rows mixed;     /* [heads][rows][latent] */
    Linear *parts;  /* a head's rows of a matrix of all heads */
    Product *products; /* of each head */
} Latents;

typedef struct {
    const Model *model;
    const Batch *batch;
    Rows inner;     /* what the next product reads: normed states, attention's results, activations */
    float *qkv;     /* [rows][qkv.outs] */
    float *gate_up; /* [rows][2 * intermediate] */
    float *beside;  /* [rows][hidden], before a post norm */
    float *shared, *shares; /* [rows][hidden] and [rows][LANES], of the MLP beside experts */
    Routing routing;
    Latents latents;
    float *turns;   /* [table][rows][cosines, sines] */
    float *own;     /* attention's, for each member */
    Unit *units;
    int unit_count;
} Step;

/* The cosines and sines of a row by one table of frequencies. */
static inline float *turns_of(const Step *step, int table, int row) {
    return step->turns + ((size_t)table * step->batch->rows + row) * step->model->rotary_dims;
}

/* The first half of the rotated numbers turns against the second. */
INLINE void rotate(float *head, const float *cosines, int half) {
    const float *sines = cosines + half;
    float *x = head, *y = head + half;
    int i = 0;
    for (; i + WIDTH <= half; i += WIDTH) {
        vec a = load(x + i), b = load(y + i), c = load(cosines + i), s = load(sines + i);
        store(x + i, fused(a, c, b * -s));
        store(y + i, fused(b, c, a * s));
    }
    for (; i < half; i++) {
        const float a = x[i], b = y[i];
        x[i] = __builtin_fmaf(a, cosines[i], b * -sines[i]);
        y[i] = __builtin_fmaf(b, cosines[i], a * sines[i]);
    }
}

/* Numbers of a row of `qkv`. */
static inline size_t qkv_numbers(const Model *model) { return (size_t)model->layers->qkv.outs; }

/* Numbers of a row that `out` reads. */
static inline size_t context_numbers(const Model *model) {
    return (size_t)model->heads * (model->latent ? model->value : model->head_dim);
}

Latents take_latents(Arena *arena, const Model *model, int rows);

/* From a layer's `qkv` to what its `out` reads, in `inner`; `job` has all but queries and results. */
void attend_latents(Team *team, const Step *step, const Layer *layer, Attention job);

#endif
