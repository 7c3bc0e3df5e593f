#include "gemm.h"

/* Rows whose activations stay in the second cache while weights stream past. */
#define PANEL 64
/* Weights of one task: small enough to share out evenly, large enough to be read in one go. */
#define TASK_BYTES (96 * 1024)
/* Tasks for each member, so that who begins late is waited for briefly. */
#define SHARES 4
/* How far ahead of the dots of one row, or of the first rows, weights are asked for. */
#define AHEAD 8192

INLINE void emit(const Product *product, const vec *sums, int rows, int tiles, int row, int tile) {
    const float *bias = product->weights->bias;
    FOR_EACH(r, rows) FOR_EACH(c, tiles * PARTS) {
        size_t column = (size_t)tile * LANES + c * WIDTH;
        float *to = product->out.values + (size_t)(row + r) * product->out.stride + column;
        vec y = sums[r * tiles * PARTS + c];
        if (bias) y = y + load(bias + column);
        store(to, product->out.add ? fused(y, all(product->out.scale), load(to)) : y);
    }
}

INLINE void pass_plain(const Product *product, int kind, int rows, int tiles, int row, int tile) {
    const Linear *w = product->weights;
    const size_t step = kind == F32 ? 4 * LANES : 2 * LANES, tile_step = step * (size_t)w->ins;
    vec sums[MOST_SUMS];
    FOR_EACH(i, rows * tiles * PARTS) sums[i] = (vec){0};
    chain(sums, rows, tiles, kind, (const char *)w->codes + tile * tile_step, step, tile_step,
          product->in.values + (size_t)row * w->ins, (size_t)w->ins, w->ins);
    emit(product, sums, rows, tiles, row, tile);
}

INLINE void pass_quantised(const Product *product, int kind, int rows, int tiles, int row, int tile, size_t ahead) {
    const Linear *w = product->weights;
    const size_t groups = (size_t)w->ins / GROUP, ins = (size_t)w->ins;
    const size_t step = kind == INT8 ? 512 : 256, scale_step = kind == INT8 ? LANES : 2 * LANES;
    const uint8_t *codes = (const uint8_t *)w->codes + tile * groups * step;
    const uint16_t *scales = w->scales + tile * groups * scale_step;
    const int8_t *q = product->in.codes + row * ins;
    const float *q_scales = product->in.scales + row * groups, *weighted = product->in.weighted + row * groups;
    const int32_t *totals = product->in.sums + row * groups;
    vec sums[MOST_SUMS];
    FOR_EACH(i, rows * tiles * PARTS) sums[i] = (vec){0};
    for (size_t group = 0; group < groups; group++, codes += step, scales += scale_step) {
        ivec dots[MOST_SUMS];
        if (ahead) FOR_EACH(t, tiles) {
            for (size_t i = 0; i < step; i += 64) __builtin_prefetch(codes + t * groups * step + ahead + i);
            __builtin_prefetch(scales + (t * groups + ahead / step) * scale_step);
        }
        if (kind == INT8)
            dot_int8(dots, rows, tiles, codes, groups * step, q + group * GROUP, ins, totals + group, groups);
        else
            dot_int4(dots, rows, tiles, codes, groups * step, q + group * GROUP, ins);
        FOR_EACH(t, tiles) FOR_EACH(p, PARTS) {
            const uint16_t *at = scales + t * groups * scale_step + p * WIDTH;
            vec scale = widen_half(at), low = kind == INT4 ? widen_half(at + LANES) : scale;
            FOR_EACH(r, rows) {
                const int i = (r * tiles + t) * PARTS + p;
                vec both = scale * all(q_scales[r * groups + group]);
                sums[i] = fused(__builtin_convertvector(dots[i], vec), both, sums[i]);
                if (kind == INT4) sums[i] = fused(low, all(weighted[r * groups + group]), sums[i]);
            }
        }
    }
    emit(product, sums, rows, tiles, row, tile);
}

/* Weights are asked for `ahead` bytes before their dots; 0: not at all. */
INLINE void pass(const Product *product, int kind, int rows, int tiles, int row, int tile, size_t ahead) {
    if (is_quantised(kind))
        pass_quantised(product, kind, rows, tiles, row, tile, ahead);
    else
        pass_plain(product, kind, rows, tiles, row, tile);
}

/* One row: memory is the limit, and one stream of weights in rising order is what it gives fastest. */
INLINE void lone_row(const Product *product, int kind, int row, int tile, int stop) {
    const int tiles = is_quantised(kind) ? 1 : PASS_TILES;
    for (; tile + tiles <= stop; tile += tiles) pass(product, kind, 1, tiles, row, tile, AHEAD);
    for (; tile < stop; tile++) pass(product, kind, 1, 1, row, tile, AHEAD);
}

/* Rows [row, last) through so many tiles. The first few bring the weights from memory; the next find them in a cache,
 * and have the memory bring what the first will need after these tiles, so that neither waits for the other. */
INLINE void all_rows(const Product *product, int kind, int most_rows, int tiles, int row, int last, int tile) {
    const size_t next = tiles * native_code_bytes(kind, LANES, product->weights->ins);
    size_t ahead = AHEAD;
    int r = row;
    for (; r + most_rows <= last; r += most_rows) {
        pass(product, kind, most_rows, tiles, r, tile, ahead);
        ahead = r == row ? next : 0;
    }
    if (last - r == 3 && most_rows > 3) pass(product, kind, 3, tiles, r, tile, ahead);
    if (last - r == 2 && most_rows > 2) pass(product, kind, 2, tiles, r, tile, ahead);
    if (last - r == 1) pass(product, kind, 1, tiles, r, tile, ahead);
}

/* Rows [row, last) of tiles [tile, stop), as many at once as the registers hold. */
INLINE void panel(const Product *product, int kind, int row, int last, int tile, int stop) {
    const int many_rows = is_quantised(kind) ? QUANT_ROWS : PASS_ROWS;
    const int many_tiles = is_quantised(kind) ? QUANT_TILES : PASS_TILES;
    if (last - row == 1) {
        lone_row(product, kind, row, tile, stop);
        return;
    }
    for (; tile + many_tiles <= stop; tile += many_tiles)
        all_rows(product, kind, many_rows, many_tiles, row, last, tile);
    for (; tile < stop; tile++) all_rows(product, kind, many_rows, 1, row, last, tile);
}

static void panel_of_kind(const Product *product, int row, int last, int tile, int stop) {
    switch (product->weights->kind) {
    case F32: panel(product, F32, row, last, tile, stop); break;
    case BF16: panel(product, BF16, row, last, tile, stop); break;
    case INT8: panel(product, INT8, row, last, tile, stop); break;
    default: panel(product, INT4, row, last, tile, stop); break;
    }
}

/* How a product is shared out: so many tiles a task, so many tasks for each panel of rows. */
typedef struct {
    int share, panels, tasks;
} Split;

/* Of one of `count` products that are alike but for their rows. */
static Split split_of(const Team *team, const Product *product, int count) {
    const Linear *weights = product->weights;
    const int tiles = weights->outs / LANES, members = team_members(team);
    const size_t tile_bytes = native_code_bytes(weights->kind, LANES, weights->ins);
    const int fair = least(tiles, (tiles * count + members * SHARES - 1) / (members * SHARES));
    Split split = {.share = most(1, least(fair, (int)(TASK_BYTES / tile_bytes)))};
    if (fair >= PASS_TILES) split.share = (split.share + PASS_TILES - 1) / PASS_TILES * PASS_TILES;
    split.panels = (product->rows + PANEL - 1) / PANEL;
    split.tasks = (tiles + split.share - 1) / split.share * split.panels;
    return split;
}

void products(Team *team, const Product *all, int count) {
    const Product *product = all, *end = all + count;
    Split split = split_of(team, product, count);
    int before = 0; /* tasks of the products that are through */
    for (int task;;) {
        task = team_next(team) - before;
        while (task >= split.tasks && ++product < end) {
            task -= split.tasks;
            before += split.tasks;
            split = split_of(team, product, count);
        }
        if (product >= end) break;
        const int tiles = product->weights->outs / LANES;
        const int tile = task / split.panels * split.share, row = task % split.panels * PANEL;
        panel_of_kind(product, row, least(product->rows, row + PANEL), tile, least(tiles, tile + split.share));
    }
    team_wait(team);
}
