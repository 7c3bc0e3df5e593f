/* Rows of several sessions through consecutive blocks of a llama-like model, all threads of a team together. */
#include "gemm.h"
#include "maths.h"
#include "step.h"

static void lay_out(Step *step, Arena *arena, int members) {
    const Model *m = step->model;
    const size_t rows = (size_t)step->batch->rows;
    step->inner = take_rows(arena, rows, (size_t)most(most(m->hidden, (int)context_numbers(m)), m->intermediate));
    step->qkv = take(arena, rows * qkv_numbers(m) * sizeof(float));
    step->gate_up = take(arena, rows * 2 * m->intermediate * sizeof(float));
    step->beside = take(arena, rows * m->hidden * sizeof(float));
    step->turns = take(arena, 2 * rows * m->rotary_dims * sizeof(float));
    step->own = take(arena, attention_floats(m) * members * sizeof(float));
    step->shared = take(arena, m->most_experts ? rows * m->hidden * sizeof(float) : 0);
    step->shares = take(arena, m->most_experts ? rows * LANES * sizeof(float) : 0);
    step->latents = take_latents(arena, m, step->batch->rows);
    step->routing = take_routing(arena, m, step->batch->rows);
    step->units = take(arena, rows * sizeof(Unit));
}

static void find_units(Step *step) {
    const Batch *batch = step->batch;
    const int longest = unit_rows(step->model), panel = step->model->latent ? LATENT_ROWS : batch->rows;
    step->unit_count = 0;
    for (int row = 0; row < batch->rows; row++) {
        Unit *last = step->units + step->unit_count - 1;
        if (row % panel && batch->sessions[row] == last->session && batch->positions[row] == batch->positions[row - 1] + 1 &&
            last->count < longest)
            last->count++;
        else
            step->units[step->unit_count++] = (Unit){row, 1, batch->sessions[row]};
    }
}

static void find_turns(Team *team, const Step *step) {
    const Model *m = step->model;
    const int half = m->rotary_dims / 2, rows = step->batch->rows;
    for (int task; (task = team_next(team)) < 2 * rows;) {
        const int table = task / rows, row = task % rows;
        if (!m->frequencies[table]) continue;
        float *cosines = turns_of(step, table, row), *sines = cosines + half;
        for (int i = 0; i < half; i++) {
            sine_cosine((double)step->batch->positions[row] * (double)m->frequencies[table][i], sines + i, cosines + i);
            cosines[i] = cosines[i] * m->rotary_gain[table];
            sines[i] = sines[i] * m->rotary_gain[table];
        }
    }
    team_wait(team);
}

/* The states, normed where there is a norm, for a product with weights of this kind. */
static void enter(Team *team, const Step *step, Norm norm, int kind) {
    const Model *m = step->model;
    const int hidden = m->hidden;
    for (int row; (row = team_next(team)) < step->batch->rows;) {
        const size_t at = (size_t)row * hidden;
        if (norm.weight)
            normalise(step->inner.values + at, step->batch->states + at, norm, hidden, m->centred, m->epsilon);
        else
            memcpy(step->inner.values + at, step->batch->states + at, sizeof(float) * hidden);
        if (is_quantised(kind)) quantise(step->inner, at, hidden);
    }
    team_wait(team);
}

/* What is in `beside`, normed where there is a norm, times the residual's scale, is added to the states. */
static void join(Team *team, const Step *step, Norm norm) {
    const Model *m = step->model;
    const size_t hidden = (size_t)m->hidden;
    for (int row; (row = team_next(team)) < step->batch->rows;) {
        float *y = step->beside + row * hidden, *states = step->batch->states + row * hidden;
        if (norm.weight) normalise(y, y, norm, m->hidden, m->centred, m->epsilon);
        for (size_t i = 0; i < hidden; i += WIDTH)
            store(states + i, fused(load(y + i), all(m->residual_scale), load(states + i)));
    }
    team_wait(team);
}

/* The product, normed where there is a norm, times the residual's scale, is added to the states. */
static void leave(Team *team, const Step *step, const Linear *weights, Norm norm) {
    const Model *m = step->model;
    const size_t hidden = (size_t)m->hidden;
    if (!norm.weight) {
        linear(team, weights, step->inner, step->batch->rows, (Out){step->batch->states, hidden, 1, m->residual_scale});
        return;
    }
    linear(team, weights, step->inner, step->batch->rows, (Out){step->beside, hidden, 0, 1});
    join(team, step, norm);
}

/* One head of queries, keys or values: nothing beyond the model's bounds. */
INLINE void clip(const Model *m, float *head) {
    for (int d = 0; m->clip > 0 && d < m->head_dim; d += WIDTH)
        store(head + d, greater(lesser(load(head + d), all(m->clip)), all(-m->clip)));
}

/* One head of queries or keys of one row: norm, rotation. */
INLINE void turn(const Step *step, const Layer *layer, int row, float *head, Norm norm) {
    const Model *m = step->model;
    const int normed = norm.weight && !m->wide_norms;
    if (normed && !m->late_norms) normalise(head, head, norm, m->head_dim, m->centred, m->epsilon);
    clip(m, head);
    if (layer->rotary >= 0) rotate(head, turns_of(step, layer->rotary, row), m->rotary_dims / 2);
    if (normed && m->late_norms) normalise(head, head, norm, m->head_dim, m->centred, m->epsilon);
}

/* Norms over all heads of a row at once. */
static void norm_wide(Team *team, const Step *step, const Layer *layer, size_t stride) {
    const Model *m = step->model;
    const int queries = m->heads * m->head_dim, keys = m->kv_heads * m->head_dim;
    for (int row; (row = team_next(team)) < step->batch->rows;) {
        float *q = step->qkv + row * stride, *k = q + queries;
        if (layer->query_norm.weight) normalise(q, q, layer->query_norm, queries, m->centred, m->epsilon);
        if (layer->key_norm.weight) normalise(k, k, layer->key_norm, keys, m->centred, m->epsilon);
    }
    team_wait(team);
}

/* Queries and keys are normed and turned, queries scaled, keys and values put into their pages. */
static void prepare(Team *team, const Step *step, const Layer *layer, const Attention *attention) {
    const Model *m = step->model;
    const int dim = m->head_dim, group = m->heads / m->kv_heads;
    if (m->wide_norms) norm_wide(team, step, layer, attention->query_stride);
    for (int task; (task = team_next(team)) < step->batch->rows * m->kv_heads;) {
        const int row = task / m->kv_heads, head = task % m->kv_heads;
        float *queries = step->qkv + row * attention->query_stride + head * group * dim;
        float *key = step->qkv + row * attention->query_stride + (m->heads + head) * dim;
        for (int q = 0; q < group; q++) {
            turn(step, layer, row, queries + q * dim, layer->query_norm);
            for (int d = 0; d < dim; d += WIDTH)
                store(queries + q * dim + d, load(queries + q * dim + d) * m->query_scale);
        }
        turn(step, layer, row, key, layer->key_norm);
        clip(m, key + m->kv_heads * dim);
        store_position(attention, row, head, key, key + m->kv_heads * dim);
    }
    team_wait(team);
}

static void attend_all(Team *team, const Step *step, const Attention *attention) {
    const int heads = step->model->kv_heads;
    for (int task; (task = team_next(team)) < step->unit_count * heads;)
        attend(attention, step->units + task / heads, task % heads);
    team_wait(team);
}

/* What enters the MLP's activation, of the normed states in `inner`. */
static void open_mlp(Team *team, const Step *step, const Layer *layer) {
    linear(team, &layer->gate_up, step->inner, step->batch->rows, (Out){step->gate_up, (size_t)layer->gate_up.outs, 0, 1});
}

static void close_mlp(Team *team, const Step *step, const Layer *layer) {
    activate_rows(team, step->model, &layer->down, step->gate_up, step->inner, step->batch->rows);
}

/* What every row goes through is added to what the experts say, by its own gate where it has one. */
static void add_shared(Team *team, const Step *step, const Layer *layer) {
    const size_t hidden = (size_t)step->model->hidden, gates = (size_t)layer->shared_gate.outs;
    const int rows = step->batch->rows;
    if (gates) linear(team, &layer->shared_gate, step->inner, rows, (Out){step->shares, gates, 0, 1});
    open_mlp(team, step, layer);
    close_mlp(team, step, layer);
    linear(team, &layer->down, step->inner, rows, (Out){step->shared, hidden, 0, 1});
    for (int row; (row = team_next(team)) < rows;) {
        const vec share = gates ? logistic(all(step->shares[row * gates])) : all(1.0f);
        for (size_t i = row * hidden; i < (row + 1) * hidden; i += WIDTH)
            store(step->beside + i, fused(load(step->shared + i), share, load(step->beside + i)));
    }
    team_wait(team);
}

static void run_mlp(Team *team, Step *step, const Layer *layer) {
    const Model *m = step->model;
    if (layer->expert_count) {
        enter(team, step, layer->mlp_norm, layer->experts->gate_up.kind);
        experts(team, m, layer, step->inner, step->batch->rows, &step->routing, step->beside);
        if (layer->gate_up.outs) add_shared(team, step, layer);
        join(team, step, layer->mlp_post_norm);
        return;
    }
    if (!m->side_by_side) {
        enter(team, step, layer->mlp_norm, layer->gate_up.kind);
        open_mlp(team, step, layer);
    }
    close_mlp(team, step, layer);
    leave(team, step, &layer->down, layer->mlp_post_norm);
}

static void run(Team *team, void *given, int member) {
    Step *step = given;
    const Model *m = step->model;
    const size_t qkv = qkv_numbers(m);
    find_turns(team, step);
    for (int index = 0; index < step->batch->layers; index++) {
        const Layer *layer = m->layers + index;
        const Attention attention = {
            .model = m,
            .batch = step->batch,
            .layer = layer,
            .index = index,
            .group = heads_at_once(m, step->unit_count, team_members(team)),
            .queries = step->qkv,
            .query_stride = qkv,
            .out = step->inner,
            .out_row = context_numbers(m),
            .out_head = (size_t)m->head_dim,
            .quantised = is_quantised(layer->out.kind),
            .own = step->own + member * attention_floats(m),
        };
        enter(team, step, layer->attention_norm, layer->qkv.kind);
        linear(team, &layer->qkv, step->inner, step->batch->rows, (Out){step->qkv, qkv, 0, 1});
        if (m->side_by_side) open_mlp(team, step, layer);
        if (m->latent) {
            attend_latents(team, step, layer, attention);
        } else {
            prepare(team, step, layer, &attention);
            attend_all(team, step, &attention);
        }
        leave(team, step, &layer->out, layer->attention_post_norm);
        run_mlp(team, step, layer);
    }
}

/* 0, or 1 where there is no memory: then nothing was computed. */
int native_blocks(Team *team, const Model *model, const Batch *batch) {
    Step step = {.model = model, .batch = batch};
    Arena arena = {NULL, 0};
    lay_out(&step, &arena, team_members(team));
    arena.memory = team_scratch(team, arena.used);
    if (!arena.memory) return 1;
    arena.used = 0;
    lay_out(&step, &arena, team_members(team));
    find_units(&step);
    team_run(team, run, &step);
    return 0;
}
