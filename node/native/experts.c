#include "experts.h"

#include "maths.h"

/* Numbers of a row that one task activates: a multiple of GROUP. */
#define ACTIVATED 512

Routing take_routing(Arena *arena, const Model *model, int rows) {
    const size_t choices = (size_t)rows * model->experts_per_row, count = (size_t)model->most_experts;
    const size_t inner = (size_t)most(model->hidden, model->expert_intermediate);
    Routing routing = {0};
    if (!choices) return routing;
    routing.logits = take(arena, (size_t)rows * (count + LANES) * sizeof(float));
    routing.chosen = take(arena, choices * sizeof(int32_t));
    routing.shares = take(arena, choices * sizeof(float));
    routing.places = take(arena, choices * sizeof(int32_t));
    routing.choices = take(arena, choices * sizeof(int32_t));
    routing.inner = take_rows(arena, choices, inner);
    routing.gate_up = take(arena, choices * 2 * (size_t)model->expert_intermediate * sizeof(float));
    routing.out = take(arena, choices * (size_t)model->hidden * sizeof(float));
    routing.opening = take(arena, count * sizeof(Product));
    routing.closing = take(arena, count * sizeof(Product));
    return routing;
}

void activate_rows(Team *team, const Model *model, const Linear *down, const float *gate_up, Rows out, int rows) {
    const int count = down->ins, pieces = (count + ACTIVATED - 1) / ACTIVATED;
    const size_t stride = (size_t)count * (model->gated ? 2 : 1);
    for (int task; (task = team_next(team)) < rows * pieces;) {
        const size_t row = (size_t)(task / pieces);
        const int first = task % pieces * ACTIVATED, width = least(ACTIVATED, count - first);
        const float *gate = gate_up + row * stride + first, *up = gate + count;
        float *to = out.values + row * count + first;
        for (int i = 0; i < width; i += WIDTH) {
            const vec x = load(gate + i);
            store(to + i, model->gated ? let_through(model->activation, x, load(up + i)) : activate(model->activation, x));
        }
        if (is_quantised(down->kind)) quantise(out, row * count + first, width);
    }
    team_wait(team);
}

enum { FREE = 0, TAKEN = 1, BARRED = 2 };

/* The greatest of `marks` that are free, of equal ones the first. */
static void take_best(const float *marks, int count, int best_of, uint8_t *taken) {
    for (int i = 0; i < best_of; i++) {
        int best = 0;
        while (taken[best]) best++;
        for (int e = best + 1; e < count; e++)
            if (!taken[e] && marks[e] > marks[best]) best = e;
        taken[best] = TAKEN;
    }
}

/* Bars the experts of all groups but the best: a group has the mark of its best expert, or of its best two together. */
static void bar_groups(const Model *model, const float *marks, int count, uint8_t *taken) {
    const int groups = model->groups, size = count / groups;
    float best_of[MOST_EXPERTS];
    uint8_t open[MOST_EXPERTS] = {0};
    for (int g = 0; g < groups; g++) {
        float best = -FLT_MAX, second = -FLT_MAX;
        for (int e = g * size; e < (g + 1) * size; e++)
            if (marks[e] > best) {
                second = best;
                best = marks[e];
            } else if (marks[e] > second) {
                second = marks[e];
            }
        best_of[g] = model->lone_shares ? best + second : best;
    }
    take_best(best_of, groups, model->groups_per_row, open);
    for (int e = 0; e < count; e++)
        if (!open[e / size]) taken[e] = BARRED;
}

/* What each expert counts before that is shared out, and its mark; logits are padded to `outs`. */
static void weigh(const Model *model, const Layer *layer, const float *logits, float *powers, float *marks) {
    const int count = layer->expert_count, outs = layer->router.outs;
    float top = logits[0];
    for (int e = 1; e < count; e++) top = logits[e] > top ? logits[e] : top;
    for (int e = 0; e < outs; e += WIDTH)
        store(powers + e, model->lone_shares ? logistic(load(logits + e)) : exponential(load(logits + e) - top));
    for (int e = count; e < outs; e++) powers[e] = 0;
    const float *from = model->lone_shares ? powers : logits;
    for (int e = 0; e < count; e++) marks[e] = layer->choice_bias ? from[e] + layer->choice_bias[e] : from[e];
}

/* The experts with the best marks, in rising order, and the share of each. */
static void choose_experts(const Model *model, const Layer *layer, const float *logits, int32_t *chosen, float *shares) {
    const int count = layer->expert_count, outs = layer->router.outs;
    float powers[MOST_EXPERTS], marks[MOST_EXPERTS], sum = 1;
    uint8_t taken[MOST_EXPERTS] = {0};
    weigh(model, layer, logits, powers, marks);
    if (model->groups > 1) bar_groups(model, marks, count, taken);
    take_best(marks, count, model->experts_per_row, taken);
    if (model->whole_shares || !model->lone_shares) {
        vec sums[PARTS] = {{0}};
        for (int e = 0; e < count; e++)
            if (model->whole_shares && taken[e] != TAKEN) powers[e] = 0;
        for (int e = 0; e < outs; e += LANES)
            FOR_EACH(p, PARTS) sums[p] = sums[p] + load(powers + e + p * WIDTH);
        sum = fold_sum(sums);
    }
    for (int e = 0, i = 0; e < count; e++)
        if (taken[e] == TAKEN) {
            chosen[i] = e;
            shares[i++] = powers[e] / sum * model->share_scale;
        }
}

/* Gives each choice its place, and each expert that has any its two products. */
static void assign(const Model *model, const Layer *layer, int rows, Routing *routing) {
    const int choices = rows * model->experts_per_row;
    int32_t starts[MOST_EXPERTS + 1] = {0};
    for (int i = 0; i < choices; i++) starts[routing->chosen[i] + 1]++;
    for (int e = 0; e < layer->expert_count; e++) starts[e + 1] += starts[e];
    routing->count = 0;
    for (int e = 0; e < layer->expert_count; e++) {
        const Expert *expert = layer->experts + e;
        const size_t first = (size_t)starts[e], hidden = (size_t)model->hidden, wide = (size_t)expert->gate_up.outs;
        const int count = starts[e + 1] - starts[e];
        if (!count) continue;
        routing->opening[routing->count] = (Product){&expert->gate_up, rows_from(routing->inner, first * hidden), count,
                                                     {routing->gate_up + first * wide, wide, 0, 1}};
        routing->closing[routing->count++] = (Product){&expert->down, rows_from(routing->inner, first * expert->down.ins),
                                                       count, {routing->out + first * hidden, hidden, 0, 1}};
    }
    for (int i = 0; i < choices; i++) {
        const int32_t place = starts[routing->chosen[i]]++;
        routing->places[i] = place;
        routing->choices[place] = i;
    }
}

/* What a row's expert reads, at its place. */
static void copy_row(Rows to, size_t place, Rows from, size_t row, size_t count, int kind) {
    const size_t groups = count / GROUP;
    if (!is_quantised(kind)) {
        memcpy(to.values + place * count, from.values + row * count, count * sizeof(float));
        return;
    }
    memcpy(to.codes + place * count, from.codes + row * count, count);
    memcpy(to.scales + place * groups, from.scales + row * groups, groups * sizeof(float));
    memcpy(to.weighted + place * groups, from.weighted + row * groups, groups * sizeof(float));
    memcpy(to.sums + place * groups, from.sums + row * groups, groups * sizeof(int32_t));
}

static void add_up(Team *team, const Model *model, int rows, const Routing *routing, float *out) {
    const size_t hidden = (size_t)model->hidden, each = (size_t)model->experts_per_row;
    for (int row; (row = team_next(team)) < rows;)
        for (size_t d = 0; d < hidden; d += WIDTH) {
            vec sum = {0};
            for (size_t i = row * each; i < (row + 1) * each; i++)
                sum = fused(load(routing->out + routing->places[i] * hidden + d), all(routing->shares[i]), sum);
            store(out + row * hidden + d, sum);
        }
    team_wait(team);
}

void experts(Team *team, const Model *model, const Layer *layer, Rows in, int rows, Routing *routing, float *out) {
    const int each = model->experts_per_row, outs = layer->router.outs, choices = rows * each;
    const Expert *any = layer->experts;
    linear(team, &layer->router, in, rows, (Out){routing->logits, (size_t)outs, 0, 1});
    for (int row; (row = team_next(team)) < rows;)
        choose_experts(model, layer, routing->logits + (size_t)row * outs, routing->chosen + row * each, routing->shares + row * each);
    team_wait(team);
    if (team_next(team) == 0) assign(model, layer, rows, routing);
    team_wait(team);
    for (int place; (place = team_next(team)) < choices;)
        copy_row(routing->inner, (size_t)place, in, (size_t)(routing->choices[place] / each), (size_t)model->hidden,
                 any->gate_up.kind);
    team_wait(team);
    products(team, routing->opening, routing->count);
    activate_rows(team, model, &any->down, routing->gate_up, routing->inner, choices);
    products(team, routing->closing, routing->count);
    add_up(team, model, rows, routing, out);
}
