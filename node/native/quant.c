#include "quant.h"

#include "lanes.h"

/* Below this a group of activations counts as zero: its inverse would not be finite. */
#define TINY 1e-30f
#define HALF_MOST 65504.0f
/* What INT4 tries at each end of a group's range: as it is, and narrower by up to 8 %. */
#define NARROWINGS 5
#define NARROWER 0.02f

size_t native_code_bytes(int kind, int64_t outs, int64_t ins) {
    static const int halves[] = {8, 4, 2, 1};
    return (size_t)(outs * ins) * halves[kind] / 2;
}

size_t native_scale_bytes(int kind, int64_t outs, int64_t ins) {
    size_t groups = (size_t)(outs * ins) / GROUP;
    return kind == INT8 ? groups * 2 : kind == INT4 ? groups * 4 : 0;
}

/* The largest magnitude of 32 numbers. */
INLINE float greatest_of(const float *from) {
    vec tile[PARTS];
    for (int p = 0; p < PARTS; p++)
        tile[p] = greater(magnitude(load(from + p * WIDTH)), magnitude(load(from + LANES + p * WIDTH)));
    return fold_greatest(tile);
}

INLINE int is_finite(const float *from) {
    ivec bad = {0};
    for (int i = 0; i < GROUP; i += WIDTH) bad |= ((ivec)load(from + i) & 0x7f800000) == 0x7f800000;
    int any = 0;
    for (int i = 0; i < WIDTH; i++) any |= bad[i];
    return !any;
}

/* Each number times `inverse`, to the nearest integer, into `codes`; their sum. */
INLINE int32_t round_group(const float *from, float inverse, int8_t *codes) {
    ivec sum = {0};
    for (int i = 0; i < GROUP; i += WIDTH) {
        ivec code = nearest(load(from + i) * inverse);
        bvec bytes = __builtin_convertvector(code, bvec);
        memcpy(codes + i, &bytes, sizeof bytes);
        sum += code;
    }
    int32_t total = 0;
    for (int i = 0; i < WIDTH; i++) total += sum[i];
    return total;
}

void quantise(Rows rows, size_t at, int count) {
    for (size_t i = at; i < at + (size_t)count; i += GROUP) {
        size_t group = i / GROUP;
        float most = greatest_of(rows.values + i), scale = 0, inverse = 0;
        if (most >= TINY) {
            scale = most / 127.0f;
            inverse = 127.0f / most;
        }
        int32_t sum = round_group(rows.values + i, inverse, rows.codes + i);
        rows.scales[group] = scale;
        rows.sums[group] = sum;
        rows.weighted[group] = scale * (float)sum;
    }
}

INLINE int pack_int8(const float *from, int8_t *codes, uint16_t *scale) {
    float most = greatest_of(from) / 127.0f;
    if (most > HALF_MOST) return 1;
    *scale = to_half(most);
    float step = half_of(*scale), inverse = step > 0 ? 1.0f / step : 0;
    float clamped[GROUP];
    for (int i = 0; i < GROUP; i += WIDTH)
        store(clamped + i, greater(lesser(load(from + i) * inverse, all(127.0f)), all(-127.0f)));
    round_group(clamped, 1.0f, codes);
    return 0;
}

/* Codes for one scale and minimum; the sum of squared errors. */
INLINE float try_int4(const float *from, float step, float low, int8_t *codes) {
    float inverse = step > 0 ? 1.0f / step : 0;
    vec errors[PARTS] = {{0}};
    for (int i = 0; i < GROUP; i += WIDTH) {
        vec above = load(from + i) - low;
        vec code = greater(lesser(above * inverse, all(15.0f)), all(0.0f));
        ivec whole = nearest(code);
        vec error = fused(all(-step), __builtin_convertvector(whole, vec), above);
        int part = i / WIDTH % PARTS;
        errors[part] = fused(error, error, errors[part]);
        bvec bytes = __builtin_convertvector(whole, bvec);
        memcpy(codes + i, &bytes, sizeof bytes);
    }
    return fold_sum(errors);
}

INLINE int pack_int4(const float *from, int8_t *codes, uint16_t *scale, uint16_t *minimum) {
    float low = from[0], high = from[0], best = 3e38f;
    for (int i = 1; i < GROUP; i++) {
        low = from[i] < low ? from[i] : low;
        high = from[i] > high ? from[i] : high;
    }
    float range = high - low;
    if (greatest_of(from) > HALF_MOST) return 1;
    for (int i = 0; i < NARROWINGS * NARROWINGS; i++) {
        float from_low = low + range * (NARROWER * (float)(i / NARROWINGS));
        float to_high = high - range * (NARROWER * (float)(i % NARROWINGS));
        uint16_t step = to_half((to_high - from_low) / 15.0f), base = to_half(from_low);
        int8_t tried[GROUP];
        float error = try_int4(from, half_of(step), half_of(base), tried);
        if (error < best) {
            best = error;
            *scale = step;
            *minimum = base;
            memcpy(codes, tried, GROUP);
        }
    }
    return 0;
}

typedef struct {
    int kind, outs, ins, bad;
    const float *weights;
    void *codes;
    uint16_t *scales;
} Packing;

INLINE int pack_group(const Packing *job, int tile, int row, int group) {
    const float *from = job->weights + ((size_t)tile * LANES + row) * job->ins + (size_t)group * GROUP;
    size_t at = (size_t)tile * (job->ins / GROUP) + group;
    int8_t codes[GROUP];
    if (!is_finite(from)) return 1;
    if (job->kind == INT8) {
        uint8_t *to = (uint8_t *)job->codes + at * 512 + row * 4;
        if (pack_int8(from, codes, job->scales + at * LANES + row)) return 1;
        for (int i = 0; i < GROUP; i++) to[i / 4 * 64 + i % 4] = (uint8_t)(codes[i] + 128);
        return 0;
    }
    uint8_t *to = (uint8_t *)job->codes + at * 256 + row * 4;
    uint16_t *scale = job->scales + at * 2 * LANES + row;
    if (pack_int4(from, codes, scale, scale + LANES)) return 1;
    for (int i = 0; i < GROUP; i += 8)
        for (int j = 0; j < 4; j++) to[i / 8 * 64 + j] = (uint8_t)(codes[i + j] | codes[i + 4 + j] << 4);
    return 0;
}

static int pack_plain(const Packing *job, int tile, int row) {
    const float *from = job->weights + ((size_t)tile * LANES + row) * job->ins;
    size_t at = (size_t)tile * job->ins * LANES + row;
    int bad = 0;
    for (int i = 0; i < job->ins; i++, at += LANES) {
        uint32_t bits = as_bits(from[i]);
        bad |= (bits & 0x7f800000) == 0x7f800000;
        if (job->kind == F32)
            ((float *)job->codes)[at] = from[i];
        else
            ((uint16_t *)job->codes)[at] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
    return bad;
}

static void pack(Team *team, void *given, int member) {
    (void)member;
    Packing *job = given;
    int tiles = job->outs / LANES;
    for (int tile; (tile = team_next(team)) < tiles;)
        for (int row = 0; row < LANES; row++) {
            int bad = 0;
            if (!is_quantised(job->kind))
                bad = pack_plain(job, tile, row);
            else
                for (int group = 0; group < job->ins / GROUP; group++) bad |= pack_group(job, tile, row, group);
            if (bad) __atomic_store_n(&job->bad, 1, __ATOMIC_RELAXED);
        }
}

int native_pack(Team *team, int kind, int32_t outs, int32_t ins, const float *weights, void *codes, uint16_t *scales) {
    Packing job = {kind, outs, ins, 0, weights, codes, scales};
    team_run(team, pack, &job);
    return job.bad;
}
