/* What Python hands over: `node/native/kernel.py` has the same structures, field by field. */
#ifndef MODEL_H
#define MODEL_H

#include <stdint.h>

enum { F32 = 0, BF16 = 1, INT8 = 2, INT4 = 3 };

/* Numbers of a row that share a scale, and positions that share a page and a block of attention. */
#define GROUP 32
#define BLOCK 256
/* Of one layer. */
#define MOST_EXPERTS 512

/* y = W x + bias. Rows lie in tiles of 16; see `quant.h` for the bytes. */
typedef struct {
    int32_t kind, outs, ins, reserved;
    const void *codes;
    const uint16_t *scales;
    const float *bias; /* or NULL */
} Linear;

/* Not applied where there is no weight. */
typedef struct {
    const float *weight, *bias; /* the bias may be NULL */
} Norm;

typedef struct {
    Linear gate_up, down;
} Expert;

/* Matrices without rows are not there. */
typedef struct {
    Linear qkv, out;
    Linear gate_up, down; /* beside experts: what every row goes through as well */
    Linear router, shared_gate; /* never quantised; the second says how much the MLP beside experts counts */
    Linear query_up;          /* queries of what `query_norm` has normed, where they are not of the states */
    Linear key_up, value_up;  /* of latents: of each head what takes a query to them, and what makes a value of them */
    const Expert *experts;
    const float *choice_bias; /* of each expert: added to what it counts where experts are chosen, or NULL */
    const float *sinks; /* of each head the score of what is not there, or NULL */
    Norm attention_norm, attention_post_norm, mlp_norm, mlp_post_norm, query_norm, key_norm;
    int32_t rotary; /* which table of frequencies; -1: this layer does not rotate */
    int32_t expert_count; /* 0: this layer has none */
    int32_t window; /* positions seen, the own among them; 0: all */
} Layer;

typedef struct {
    int32_t hidden, heads, kv_heads, head_dim, intermediate, rotary_dims;
    int32_t expert_intermediate, most_experts, experts_per_row;
    int32_t groups, groups_per_row; /* of experts that are neighbours: a row's come from so many; 1: all in one */
    int32_t whole_shares; /* the shares of a row's experts add up to 1 */
    int32_t lone_shares;  /* what an expert counts is told by its own logit, before that */
    int32_t activation;  /* 0: SiLU, 1: GELU, 2: the square of what is positive, 3: as gpt-oss bounds it */
    int32_t gated;       /* gate_up has gates before what they let through; else it has no gates */
    int32_t centred;     /* norms take the mean away first */
    int32_t wide_norms;  /* query_norm and key_norm are over all heads at once */
    int32_t late_norms;  /* they come after the rotation */
    int32_t side_by_side; /* the MLP reads what attention reads */
    int32_t kv_bytes;    /* of a number in a page: 4 for fp32, 2 for fp16 */
    int32_t latent;      /* numbers that stand for the keys and values of all heads, 0: these themselves are kept */
    int32_t query_rank;  /* numbers that queries are made of, 0: of the states; only with latents, as the next two */
    int32_t own;         /* numbers of a head that do not turn */
    int32_t value;       /* numbers of a head's value */
    float epsilon, query_scale, residual_scale;
    float score_cap; /* scores are bent to stay within it; 0: none */
    float share_scale; /* shares are multiplied by it in the end */
    float clip;      /* queries, keys and values are cut off there; 0: none */
    float inner_epsilon; /* of the norms of latents, and of what queries are made of */
    float rotary_gain[2];
    const float *frequencies[2];
    const Layer *layers;
} Model;

/* Rows of several sessions; those of one are neighbours with rising positions. */
typedef struct {
    int32_t rows, layers;
    const int32_t *positions, *sessions; /* of each row; sessions are numbered from 0 */
    void *const *const *pages;           /* of each session, [layers][page_counts[session]] */
    const int32_t *page_counts;
    float *states; /* [rows][hidden], replaced */
} Batch;

#endif
