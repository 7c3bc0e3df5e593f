/* Rows through those experts that their router chooses, whatever rows are beside them. */
#ifndef EXPERTS_H
#define EXPERTS_H

#include "arena.h"
#include "gemm.h"

/* What becomes of the rows of one step. A place is one row at one of its experts; places go by expert, then by row. */
typedef struct {
    float *logits;   /* [rows][router.outs] */
    int32_t *chosen; /* [rows][experts_per_row], rising */
    float *shares;   /* of each of these */
    int32_t *places; /* of each of these */
    int32_t *choices; /* [places], the other way round */
    Rows inner;      /* [places], what the next product reads */
    float *gate_up;  /* [places][2 * expert_intermediate] */
    float *out;      /* [places][hidden] */
    Product *opening, *closing; /* of each expert that anyone chose */
    int count;
} Routing;

Routing take_routing(Arena *arena, const Model *model, int rows);

/* activation(gate) * up, or activation(up) where there are no gates, for the product with `down`. */
void activate_rows(Team *team, const Model *model, const Linear *down, const float *gate_up, Rows out, int rows);

/* out [rows][hidden] = the sum over a row's experts of their results, each by its share. */
void experts(Team *team, const Model *model, const Layer *layer, Rows in, int rows, Routing *routing, float *out);

#endif
