#include "attention.h"

#include "gemm.h"
#include "maths.h"

/* Queries that one pass over a head's keys serves: their scores stay in the first two caches. */
#define UNIT_QUERIES 64
/* Heads that are served by one walk over latents: fewer make more of turning them round, more leave members idle. */
#define MOST_HEADS 16
#define LEAST_HEADS 4
/* Less than every score, and far enough from infinity to subtract from. */
#define UNSEEN -3e38f

/* A query's state: the greatest score so far, and the sum of the numerators under it. */
typedef struct {
    float top, sum;
} Running;

/* One unit at one head, and this member's memory for it. */
typedef struct {
    const Attention *job;
    const Unit *unit;
    const int32_t *positions; /* of the unit's rows */
    int key_head;             /* which the visit's `group` heads of queries share, of which `head` is the first */
    int head, group, count;
    int dim, wide;  /* numbers of a key, and of a value */
    float *queries; /* [count][dim] */
    float *scores;  /* [count][BLOCK] */
    float *sums;    /* [count][wide], of the values of all blocks so far */
    float *fresh;   /* [count][wide], of this block's */
    float *turned;  /* [BLOCK][PASS_TILES * LANES], of latents some columns as values lie */
    Running *all_blocks, *this_block;
} Visit;

/* Sixteens of one page, [low, high) of them seen by somebody; `base` is the page's first position. */
typedef struct {
    const char *head; /* where the head's part of the page's first sixteen is */
    size_t step;      /* from one sixteen to the next */
    int base, low, high;
} Part;

INLINE int value_size(const Model *model) { return model->latent ? model->latent : model->head_dim; }
INLINE int most_heads(const Model *model) {
    return model->latent ? least(model->heads, MOST_HEADS) : model->heads / model->kv_heads;
}

int heads_at_once(const Model *model, int units, int members) {
    if (!model->latent) return most_heads(model);
    const int fair = (model->heads * units + 2 * members - 1) / (2 * members);
    return least(most_heads(model), (fair + LEAST_HEADS - 1) / LEAST_HEADS * LEAST_HEADS);
}

int unit_rows(const Model *model) { return most(1, UNIT_QUERIES / most_heads(model)); }

size_t attention_floats(const Model *model) {
    const size_t queries = (size_t)unit_rows(model) * most_heads(model), numbers = model->head_dim + 2 * value_size(model);
    return queries * (BLOCK + numbers + 2 * sizeof(Running) / sizeof(float)) +
           (model->latent ? BLOCK * PASS_TILES * LANES : 0);
}

INLINE size_t head_bytes(const Model *model) {
    return (size_t)model->head_dim * (model->latent ? 1 : 2) * LANES * model->kv_bytes;
}

/* The head's part of the first sixteen of the page that `position` is in. */
INLINE char *page_of(const Attention *job, int session, int position, int head) {
    void *const *pages = job->batch->pages[session] + job->index * job->batch->page_counts[session];
    return (char *)pages[position / BLOCK] + head * head_bytes(job->model);
}

void store_position(const Attention *job, int row, int head, const float *key, const float *value) {
    const Model *model = job->model;
    const int dim = model->head_dim, position = job->batch->positions[row], lane = position % LANES;
    const size_t sixteen = (size_t)(position % BLOCK / LANES) * model->kv_heads * head_bytes(model);
    char *keys = page_of(job, job->batch->sessions[row], position, head) + sixteen;
    char *values = keys + ((size_t)dim * LANES + (size_t)lane * dim) * model->kv_bytes;
    if (model->kv_bytes == 4) {
        for (int d = 0; d < dim; d++) ((float *)keys)[d * LANES + lane] = key[d];
        if (value) memcpy(values, value, sizeof(float) * dim);
        return;
    }
    for (int d = 0; d < dim; d += WIDTH) {
        uint16_t halves[WIDTH];
        narrow_half(halves, load(key + d));
        for (int i = 0; i < WIDTH; i++) ((uint16_t *)keys)[(d + i) * LANES + lane] = halves[i];
        if (value) narrow_half((uint16_t *)values + d, load(value + d));
    }
}

INLINE int first_seen(const Layer *layer, int position) {
    return layer->window > 0 && position >= layer->window ? position - layer->window + 1 : 0;
}

/* Scores of `rows` queries from `q` on, at `tiles` sixteens from `position` on: one position is one lane. */
INLINE void score(const Visit *visit, const Part *part, int kind, int rows, int tiles, int q, int position) {
    const int dim = visit->dim, size = kind == F32 ? 4 : 2;
    vec sums[MOST_SUMS];
    FOR_EACH(i, rows * tiles * PARTS) sums[i] = (vec){0};
    chain(sums, rows, tiles, kind, part->head + (position - part->base) / LANES * part->step, (size_t)size * LANES,
          part->step, visit->queries + (size_t)q * dim, (size_t)dim, dim);
    FOR_EACH(r, rows) FOR_EACH(c, tiles * PARTS)
        store(visit->scores + (size_t)(q + r) * BLOCK + position - part->base + c * WIDTH, sums[r * tiles * PARTS + c]);
}

/* The values of the part, each times its numerator, for `tiles` times 16 dimensions from `d` on: lanes are dimensions. */
INLINE void gather(const Visit *visit, const Part *part, int kind, int rows, int tiles, int q, int d) {
    const size_t dim = (size_t)visit->dim, size = kind == F32 ? 4 : 2;
    vec sums[MOST_SUMS];
    FOR_EACH(i, rows * tiles * PARTS) sums[i] = (vec){0};
    for (int position = part->low; position < part->high; position += LANES) {
        const char *values = part->head + (position - part->base) / LANES * part->step + (dim * LANES + d) * size;
        chain(sums, rows, tiles, kind, values, dim * size, LANES * size,
              visit->scores + (size_t)q * BLOCK + position - part->base, BLOCK, least(LANES, part->high - position));
    }
    FOR_EACH(r, rows) FOR_EACH(c, tiles * PARTS)
        store(visit->fresh + (size_t)(q + r) * dim + d + c * WIDTH, sums[r * tiles * PARTS + c]);
}

/* Of the part's latents `tiles` times 16 numbers from `d` on, a row for each position. */
INLINE void turn_round(const Visit *visit, const Part *part, int kind, int tiles, int d) {
    const size_t size = kind == F32 ? 4 : 2;
    for (int position = part->low; position < part->high; position += LANES) {
        const char *from = part->head + (position - part->base) / LANES * part->step + d * LANES * size;
        float *to = visit->turned + (size_t)(position - part->low) * tiles * LANES;
        FOR_EACH(t, tiles * PARTS) FOR_EACH(p, PARTS) {
            vec rows[WIDTH];
            FOR_EACH(i, WIDTH) rows[i] = widen(kind, from + ((size_t)(t * WIDTH + i) * LANES + p * WIDTH) * size);
            transpose(rows);
            FOR_EACH(i, WIDTH) store(to + (size_t)(p * WIDTH + i) * tiles * LANES + t * WIDTH, rows[i]);
        }
    }
}

/* As `gather`, of latents that are turned round. */
INLINE void gather_turned(const Visit *visit, const Part *part, int rows, int tiles, int q, int d) {
    const size_t tile_bytes = LANES * sizeof(float);
    vec sums[MOST_SUMS];
    FOR_EACH(i, rows * tiles * PARTS) sums[i] = (vec){0};
    chain(sums, rows, tiles, F32, (const char *)visit->turned, tiles * tile_bytes, tile_bytes,
          visit->scores + (size_t)q * BLOCK + part->low - part->base, BLOCK, part->high - part->low);
    FOR_EACH(r, rows) FOR_EACH(c, tiles * PARTS)
        store(visit->fresh + (size_t)(q + r) * visit->wide + d + c * WIDTH, sums[r * tiles * PARTS + c]);
}

INLINE void gather_tiles(const Visit *visit, const Part *part, int kind, int tiles, int d) {
    int q = 0;
    turn_round(visit, part, kind, tiles, d);
    for (; q + PASS_ROWS <= visit->count; q += PASS_ROWS) gather_turned(visit, part, PASS_ROWS, tiles, q, d);
    for (; q < visit->count; q++) gather_turned(visit, part, 1, tiles, q, d);
}

INLINE void gather_latents(const Visit *visit, const Part *part, int kind) {
    int d = 0;
    for (; d + PASS_TILES * LANES <= visit->wide; d += PASS_TILES * LANES) gather_tiles(visit, part, kind, PASS_TILES, d);
    for (; d < visit->wide; d += LANES) gather_tiles(visit, part, kind, 1, d);
}

/* Calls step(visit, part, kind, rows, tiles, q, at) so that all queries meet all sixteens of [from, to). */
#define COVER(step, from, to)                                                                        \
    for (int at = (from); at < (to);) {                                                              \
        const int wide = at + PASS_TILES * LANES <= (to);                                            \
        int q = 0;                                                                                   \
        for (; q + PASS_ROWS <= visit->count; q += PASS_ROWS) {                                      \
            if (wide) step(visit, part, kind, PASS_ROWS, PASS_TILES, q, at);                         \
            else step(visit, part, kind, PASS_ROWS, 1, q, at);                                       \
        }                                                                                            \
        for (; q < visit->count; q++) {                                                              \
            if (wide) step(visit, part, kind, 1, PASS_TILES, q, at);                                 \
            else step(visit, part, kind, 1, 1, q, at);                                               \
        }                                                                                            \
        at += wide ? PASS_TILES * LANES : LANES;                                                     \
    }

INLINE void score_all(const Visit *visit, const Part *part, int kind) { COVER(score, part->low, part->high) }
INLINE void gather_all(const Visit *visit, const Part *part, int kind) { COVER(gather, 0, visit->dim) }

/* Scores become numerators: those of [first, stop) of a row of `width` are seen, the others become 0. */
INLINE Running soften(float *scores, int width, int first, int stop) {
    vec tops[PARTS], sums[PARTS] = {{0}};
    for (int i = 0; i < first; i++) scores[i] = UNSEEN;
    for (int i = stop; i < width; i++) scores[i] = UNSEEN;
    FOR_EACH(p, PARTS) tops[p] = all(UNSEEN);
    for (int i = 0; i < width; i += LANES)
        FOR_EACH(p, PARTS) tops[p] = greater(tops[p], load(scores + i + p * WIDTH));
    const float top = fold_greatest(tops);
    for (int i = 0; i < width; i += WIDTH) store(scores + i, exponential(load(scores + i) - top));
    for (int i = 0; i < first; i++) scores[i] = 0;
    for (int i = stop; i < width; i++) scores[i] = 0;
    for (int i = 0; i < width; i += LANES)
        FOR_EACH(p, PARTS) sums[p] = sums[p] + load(scores + i + p * WIDTH);
    return (Running){top, fold_sum(sums)};
}

INLINE void soften_all(const Visit *visit, const Part *part) {
    const int width = (part->high - part->low + LANES - 1) / LANES * LANES;
    const float cap = visit->job->model->score_cap;
    for (int q = 0; q < visit->count; q++) {
        const int position = visit->positions[q / visit->group], first = first_seen(visit->job->layer, position);
        float *scores = visit->scores + (size_t)q * BLOCK + part->low - part->base;
        for (int i = 0; cap > 0 && i < width; i += WIDTH) store(scores + i, bent(load(scores + i), cap));
        visit->this_block[q] = soften(scores, width, least(width, most(0, first - part->low)),
                                      most(0, least(position + 1, part->high) - part->low));
    }
}

/* Takes this block into the state of all blocks before it, for a query that sees any of it. */
INLINE void merge(const Visit *visit, const Part *part, int q) {
    const int position = visit->positions[q / visit->group], first = first_seen(visit->job->layer, position);
    if (position < part->base || first >= part->base + BLOCK) return;
    Running *old = visit->all_blocks + q;
    const Running new = visit->this_block[q];
    float *sums = visit->sums + (size_t)q * visit->wide;
    const float *fresh = visit->fresh + (size_t)q * visit->wide;
    if (part->base <= first) { /* its first block */
        *old = new;
        memcpy(sums, fresh, sizeof(float) * visit->wide);
        return;
    }
    const float top = new.top > old->top ? new.top : old->top;
    const float keep = exponential_of(old->top - top), take = exponential_of(new.top - top);
    for (int d = 0; d < visit->wide; d += WIDTH)
        store(sums + d, fused(load(sums + d), all(keep), load(fresh + d) * take));
    *old = (Running){top, __builtin_fmaf(old->sum, keep, new.sum * take)};
}

/* A query's sums over their denominator, and their codes. */
INLINE void finish(const Visit *visit, int q) {
    const Attention *job = visit->job;
    const int row = visit->unit->row - job->first + q / visit->group, head = visit->head + q % visit->group;
    const size_t at = row * job->out_row + head * job->out_head;
    const Running found = visit->all_blocks[q];
    float inverse = 1.0f / found.sum;
    if (job->layer->sinks) { /* one more numerator, with no value */
        const float sink = job->layer->sinks[head], top = sink > found.top ? sink : found.top;
        const float keep = exponential_of(found.top - top);
        inverse = keep * (1.0f / __builtin_fmaf(found.sum, keep, exponential_of(sink - top)));
    }
    /* + 0: what underflowed on its way has the sign of whoever was seen beside it */
    for (int d = 0; d < visit->wide; d += WIDTH)
        store(job->out.values + at + d, load(visit->sums + (size_t)q * visit->wide + d) * inverse + 0.0f);
    if (job->quantised) quantise(job->out, at, visit->wide);
}

INLINE void attend_kind(const Visit *visit, int kind) {
    const Attention *job = visit->job;
    const int begin = first_seen(job->layer, visit->positions[0]), end = visit->positions[visit->unit->count - 1] + 1;
    for (int base = begin / BLOCK * BLOCK; base < end; base += BLOCK) {
        const Part here = {
            .head = page_of(job, visit->unit->session, base, visit->key_head),
            .step = job->model->kv_heads * head_bytes(job->model),
            .base = base,
            .low = most(base, begin / LANES * LANES),
            .high = least(base + BLOCK, end),
        };
        score_all(visit, &here, kind);
        soften_all(visit, &here);
        if (job->model->latent) gather_latents(visit, &here, kind);
        else gather_all(visit, &here, kind);
        for (int q = 0; q < visit->count; q++) merge(visit, &here, q);
    }
    for (int q = 0; q < visit->count; q++) finish(visit, q);
}

void attend(const Attention *job, const Unit *unit, int part) {
    const Model *model = job->model;
    const int dim = model->head_dim, wide = value_size(model), head = part * job->group;
    const int group = least(job->group, model->heads - head);
    const size_t count = (size_t)unit->count * group;
    float *own = job->own;
    Visit visit = {
        .job = job,
        .unit = unit,
        .positions = job->batch->positions + unit->row,
        .key_head = head / (model->heads / model->kv_heads),
        .head = head,
        .group = group,
        .count = (int)count,
        .dim = dim,
        .wide = wide,
        .queries = own,
        .scores = own + count * dim,
    };
    visit.sums = visit.scores + count * BLOCK;
    visit.fresh = visit.sums + count * wide;
    visit.all_blocks = (Running *)(visit.fresh + count * wide);
    visit.this_block = visit.all_blocks + count;
    visit.turned = (float *)(visit.this_block + count);
    for (size_t q = 0; q < count; q++)
        memcpy(visit.queries + q * dim,
               job->queries + (unit->row - job->first + q / group) * job->query_stride + (head + q % group) * (size_t)dim,
               sizeof(float) * dim);
    if (job->model->kv_bytes == 4)
        attend_kind(&visit, F32);
    else
        attend_kind(&visit, HALVES);
}
