/* Attention to latents: one vector a position stands for the keys and values of all heads.
 *
 * Neither is ever made. A head's query is taken to the latents instead, so that all heads meet the same keys, which
 * are also their values; what a head finds is made a value afterwards. One way for one row and for many. */
#include "maths.h"
#include "step.h"

/* Heads of one row that a task prepares. */
#define TASK_HEADS 8

/* Numbers of a head of queries as the checkpoint has them: those that stay, then those that turn. */
static size_t head_numbers(const Model *m) { return (size_t)(m->own + m->head_dim - m->latent); }

Latents take_latents(Arena *arena, const Model *m, int rows) {
    const size_t some = (size_t)least(rows, LATENT_ROWS), heads = (size_t)m->heads;
    Latents latents = {0};
    if (!m->latent) return latents;
    latents.ranked = take_rows(arena, (size_t)rows, (size_t)m->query_rank);
    latents.heads = take(arena, m->query_rank ? rows * heads * head_numbers(m) * sizeof(float) : 0);
    latents.own = take_rows(arena, some * heads, (size_t)m->own);
    latents.queries = take(arena, some * heads * m->head_dim * sizeof(float));
    latents.mixed = take_rows(arena, some * heads, (size_t)m->latent);
    latents.parts = take(arena, heads * sizeof(Linear));
    latents.products = take(arena, heads * sizeof(Product));
    return latents;
}

/* Latents are normed, what turns in them turns, and both go into their pages; what queries are made of is normed. */
static void keep(Team *team, const Step *step, const Layer *layer, const Attention *job) {
    const Model *m = step->model;
    const size_t stride = qkv_numbers(m), rank = (size_t)m->query_rank;
    const Rows ranked = step->latents.ranked;
    for (int row; (row = team_next(team)) < step->batch->rows;) {
        float *from = step->qkv + row * stride, *latent = from + stride - m->head_dim;
        normalise(latent, latent, layer->key_norm, m->latent, m->centred, m->inner_epsilon);
        if (layer->rotary >= 0) rotate(latent + m->latent, turns_of(step, layer->rotary, row), m->rotary_dims / 2);
        store_position(job, row, 0, latent, NULL);
        if (!rank) continue;
        normalise(ranked.values + row * rank, from, layer->query_norm, m->query_rank, m->centred, m->inner_epsilon);
        if (is_quantised(layer->query_up.kind)) quantise(ranked, row * rank, m->query_rank);
    }
    team_wait(team);
}

/* Queries of rows [first, stop) turn and are scaled; what does not turn is put aside for the product with `key_up`. */
static void prepare(Team *team, const Step *step, const Layer *layer, int first, int stop) {
    const Model *m = step->model;
    const Latents *latents = &step->latents;
    const int pieces = (m->heads + TASK_HEADS - 1) / TASK_HEADS, turning = m->head_dim - m->latent;
    const size_t numbers = head_numbers(m), stride = m->query_rank ? m->heads * numbers : qkv_numbers(m);
    for (int task; (task = team_next(team)) < (stop - first) * pieces;) {
        const int row = first + task / pieces, head = task % pieces * TASK_HEADS;
        for (int h = head; h < least(m->heads, head + TASK_HEADS); h++) {
            float *from = (m->query_rank ? latents->heads : step->qkv) + row * stride + h * numbers;
            const size_t at = ((size_t)h * (stop - first) + (row - first)) * m->own;
            float *to = latents->queries + ((size_t)(row - first) * m->heads + h) * m->head_dim + m->latent;
            if (layer->rotary >= 0) rotate(from + m->own, turns_of(step, layer->rotary, row), m->rotary_dims / 2);
            for (int d = 0; d < m->own; d += WIDTH) store(latents->own.values + at + d, load(from + d) * m->query_scale);
            for (int d = 0; d < turning; d += WIDTH) store(to + d, load(from + m->own + d) * m->query_scale);
            if (is_quantised(layer->key_up.kind)) quantise(latents->own, at, m->own);
        }
    }
    team_wait(team);
}

/* Each head's rows of `weights`, for what it has in `in`, [heads][rows][ins]: results of one head to the next's, and of
 * one row to the next's, lie so many numbers apart. */
static void by_head(Team *team, const Step *step, const Linear *weights, Rows in, int rows, float *out, size_t head_step,
                    size_t row_step) {
    const int heads = step->model->heads, outs = weights->outs / heads;
    const size_t codes = native_code_bytes(weights->kind, outs, weights->ins);
    const size_t scales = native_scale_bytes(weights->kind, outs, weights->ins);
    if (team_next(team) == 0)
        for (int h = 0; h < heads; h++) {
            Linear *part = step->latents.parts + h;
            *part = *weights;
            part->outs = outs;
            part->codes = (const char *)weights->codes + h * codes;
            part->scales = (const uint16_t *)((const char *)weights->scales + h * scales);
            step->latents.products[h] = (Product){part, rows_from(in, (size_t)h * rows * weights->ins), rows,
                                                  {out + h * head_step, row_step, 0, 1}};
        }
    team_wait(team);
    products(team, step->latents.products, heads);
}

/* Units of rows [first, stop) over what they see: [heads][rows][latent]. */
static void mix(Team *team, const Step *step, Attention job, int first, int stop) {
    const Model *m = step->model;
    const Unit *unit = step->units;
    int count = 0;
    while (unit->row < first) unit++;
    while (unit + count < step->units + step->unit_count && unit[count].row < stop) count++;
    job.first = first;
    job.group = heads_at_once(m, count, team_members(team));
    job.queries = step->latents.queries;
    job.query_stride = (size_t)m->heads * m->head_dim;
    job.out = step->latents.mixed;
    job.out_row = (size_t)m->latent;
    job.out_head = (size_t)(stop - first) * m->latent;
    const int parts = (m->heads + job.group - 1) / job.group;
    for (int task; (task = team_next(team)) < count * parts;) attend(&job, unit + task / parts, task % parts);
    team_wait(team);
}

void attend_latents(Team *team, const Step *step, const Layer *layer, Attention job) {
    const Model *m = step->model;
    const Latents *latents = &step->latents;
    const int rows = step->batch->rows;
    const size_t queries = (size_t)m->heads * m->head_dim, values = context_numbers(m);
    keep(team, step, layer, &job);
    if (m->query_rank)
        linear(team, &layer->query_up, latents->ranked, rows, (Out){latents->heads, m->heads * head_numbers(m), 0, 1});
    job.quantised = is_quantised(layer->value_up.kind);
    for (int first = 0; first < rows; first += LATENT_ROWS) {
        const int stop = least(rows, first + LATENT_ROWS), some = stop - first;
        prepare(team, step, layer, first, stop);
        by_head(team, step, &layer->key_up, latents->own, some, latents->queries, (size_t)m->head_dim, queries);
        mix(team, step, job, first, stop);
        by_head(team, step, &layer->value_up, latents->mixed, some, step->inner.values + first * values,
                (size_t)m->value, values);
    }
    if (is_quantised(layer->out.kind))
        for (int row; (row = team_next(team)) < rows;) quantise(step->inner, row * values, (int)values);
    team_wait(team);
}
