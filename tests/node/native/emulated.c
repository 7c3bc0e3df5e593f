/* Runs one case on standard input and writes the states that leave: for processors that are only emulated here.
 *
 * Everything is little-endian and comes in the order in which `test_emulated.py` writes it. */
#include <stdio.h>
#include <stdlib.h>

#include "quant.h"

int native_blocks(Team *team, const Model *model, const Batch *batch);

static void *take(size_t size) {
    void *into = aligned_alloc(64, (size + 127) & ~(size_t)63);
    if (!into || fread(into, 1, size, stdin) != size) exit(3);
    return into;
}

static int32_t take_int(void) {
    int32_t value;
    if (fread(&value, sizeof value, 1, stdin) != 1) exit(3);
    return value;
}

static float take_float(void) {
    float value;
    if (fread(&value, sizeof value, 1, stdin) != 1) exit(3);
    return value;
}

/* Numbers behind their count; NULL for none. */
static float *take_floats(void) {
    const int32_t count = take_int();
    return count ? take(sizeof(float) * (size_t)count) : NULL;
}

static Norm take_norm(void) {
    float *weight = take_floats(), *bias = take_floats();
    return (Norm){weight, bias};
}

static Linear take_matrix(Team *team) {
    const int32_t kind = take_int(), outs = take_int(), ins = take_int();
    if (!outs) return (Linear){0};
    float *weights = take_floats(), *bias = take_floats();
    void *codes = aligned_alloc(64, (native_code_bytes(kind, outs, ins) + 127) & ~(size_t)63);
    uint16_t *scales = aligned_alloc(64, (native_scale_bytes(kind, outs, ins) + 127) & ~(size_t)63);
    if (!codes || !scales || native_pack(team, kind, outs, ins, weights, codes, scales)) exit(4);
    return (Linear){kind, outs, ins, 0, codes, scales, bias};
}

static Layer take_layer(Team *team) {
    Layer layer = {0};
    int32_t *numbers[] = {&layer.rotary, &layer.window, &layer.expert_count};
    for (int i = 0; i < 3; i++) *numbers[i] = take_int();
    layer.choice_bias = take_floats();
    layer.sinks = take_floats();
    Linear *matrices[] = {&layer.qkv,    &layer.out,         &layer.gate_up,  &layer.down,    &layer.router,
                          &layer.shared_gate, &layer.query_up, &layer.key_up, &layer.value_up};
    for (int i = 0; i < 9; i++) *matrices[i] = take_matrix(team);
    Expert *experts = calloc((size_t)layer.expert_count + 1, sizeof *experts);
    for (int i = 0; i < layer.expert_count; i++) {
        experts[i].gate_up = take_matrix(team);
        experts[i].down = take_matrix(team);
    }
    layer.experts = experts;
    Norm *norms[] = {&layer.attention_norm, &layer.attention_post_norm, &layer.mlp_norm,
                     &layer.mlp_post_norm,  &layer.query_norm,          &layer.key_norm};
    for (int i = 0; i < 6; i++) *norms[i] = take_norm();
    return layer;
}

int main(void) {
    Team *team = native_team(2);
    Model model = {0};
    int32_t *sizes[] = {&model.hidden,     &model.heads,        &model.kv_heads, &model.head_dim, &model.intermediate,
                        &model.rotary_dims, &model.expert_intermediate, &model.most_experts, &model.experts_per_row,
                        &model.groups, &model.groups_per_row, &model.whole_shares, &model.lone_shares,
                        &model.activation, &model.gated, &model.centred, &model.wide_norms, &model.late_norms,
                        &model.side_by_side, &model.kv_bytes, &model.latent, &model.query_rank, &model.own, &model.value};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) *sizes[i] = take_int();
    const int32_t blocks = take_int(), rows = take_int();
    float *scales[] = {&model.epsilon, &model.query_scale, &model.residual_scale, &model.score_cap, &model.share_scale,
                       &model.clip, &model.inner_epsilon};
    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++) *scales[i] = take_float();
    for (int i = 0; i < 2; i++) {
        model.rotary_gain[i] = take_float();
        model.frequencies[i] = take_floats();
    }
    Layer *layers = calloc((size_t)blocks, sizeof *layers);
    for (int i = 0; i < blocks; i++) layers[i] = take_layer(team);
    model.layers = layers;
    float *states = take_floats();
    const int32_t count = (rows + BLOCK - 1) / BLOCK;
    const size_t page = (size_t)BLOCK * model.kv_heads * model.head_dim * (model.latent ? 1 : 2) * model.kv_bytes;
    void **pages = calloc((size_t)(blocks * count), sizeof *pages);
    for (int i = 0; i < blocks * count; i++) pages[i] = calloc(1, page);
    int32_t *positions = calloc((size_t)rows, sizeof *positions), *sessions = calloc((size_t)rows, sizeof *sessions);
    for (int i = 0; i < rows; i++) positions[i] = i;
    void *const *table = pages;
    const Batch batch = {rows, blocks, positions, sessions, &table, &count, states};
    if (native_blocks(team, &model, &batch)) return 5;
    return fwrite(states, sizeof(float) * (size_t)model.hidden, (size_t)rows, stdout) != (size_t)rows;
}
