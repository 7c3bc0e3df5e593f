/* The end of a model: the last norm, the logits, and what normalises them. */
#include "gemm.h"
#include "maths.h"

/* What comes after the last block; `kernel.py` has the same structure. */
typedef struct {
    Linear weights;
    Norm norm;
    int32_t centred;
    float epsilon;
    float cap; /* logits are bent to stay within it; 0: none */
} Head;

typedef struct {
    const Head *head;
    const float *states;
    float *logits;
    Rows inner;
    int rows;
} Ending;

static void bend(Team *team, const Ending *job) {
    const size_t outs = (size_t)job->head->weights.outs;
    for (int row; (row = team_next(team)) < job->rows;)
        for (float *at = job->logits + row * outs, *end = at + outs; at < end; at += WIDTH)
            store(at, bent(load(at), job->head->cap));
    team_wait(team);
}

static void run(Team *team, void *given, int member) {
    (void)member;
    const Ending *job = given;
    const Head *head = job->head;
    const int hidden = head->weights.ins;
    for (int row; (row = team_next(team)) < job->rows;) {
        const size_t at = (size_t)row * hidden;
        normalise(job->inner.values + at, job->states + at, head->norm, hidden, head->centred, head->epsilon);
        if (is_quantised(head->weights.kind)) quantise(job->inner, at, hidden);
    }
    team_wait(team);
    linear(team, &head->weights, job->inner, job->rows, (Out){job->logits, (size_t)head->weights.outs, 0, 1});
    if (head->cap > 0) bend(team, job);
}

/* logits [rows][outs] of states [rows][ins]. 0, or 1 where there is no memory. */
int native_head(Team *team, const Head *head, const float *states, int32_t rows, float *logits) {
    const size_t numbers = (size_t)rows * head->weights.ins, groups = (numbers + GROUP - 1) / GROUP;
    float *memory = team_scratch(team, numbers * (sizeof(float) + 1) + 3 * groups * sizeof(float));
    if (!memory) return 1;
    Rows inner = {.values = memory, .scales = memory + numbers};
    inner.weighted = inner.scales + groups;
    inner.sums = (int32_t *)(inner.weighted + groups);
    inner.codes = (int8_t *)(inner.sums + groups);
    Ending job = {head, states, logits, inner, rows};
    team_run(team, run, &job);
    return 0;
}

/* The states [rows][ins] after the last norm. */
void native_last_norm(const Head *head, const float *states, int32_t rows, float *out) {
    for (size_t row = 0, hidden = (size_t)head->weights.ins; row < (size_t)rows; row++)
        normalise(out + row * hidden, states + row * hidden, head->norm, head->weights.ins, head->centred,
                  head->epsilon);
}

/* The greatest of logits / temperature, and the sum of e^(logit / temperature - greatest), in blocks of 256. */
double native_normaliser(const float *logits, int64_t count, float temperature, float *greatest) {
    uint64_t rounding = set_rounding();
    float top = logits[0] / temperature;
    for (int64_t i = 1; i < count; i++) {
        float scaled = logits[i] / temperature;
        top = scaled > top ? scaled : top;
    }
    double total = 0;
    for (int64_t start = 0; start < count; start += BLOCK) {
        float block[BLOCK] = {0};
        const int width = count - start < BLOCK ? (int)(count - start) : BLOCK;
        for (int i = 0; i < width; i++) block[i] = logits[start + i] / temperature;
        vec sums[PARTS] = {{0}};
        for (int i = 0; i < BLOCK; i += WIDTH) store(block + i, exponential(load(block + i) - top));
        for (int i = width; i < BLOCK; i++) block[i] = 0;
        for (int i = 0; i < BLOCK; i += LANES)
            for (int p = 0; p < PARTS; p++) sums[p] = sums[p] + load(block + i + p * WIDTH);
        total = total + (double)fold_sum(sums);
    }
    restore_rounding(rounding);
    *greatest = top;
    return total;
}
