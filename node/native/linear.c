/* One product by itself, for whoever keeps the rest of a model elsewhere. */
#include "gemm.h"

typedef struct {
    const Linear *weights;
    Rows in;
    float *out;
    int rows;
} Single;

static void run(Team *team, void *given, int member) {
    (void)member;
    const Single *job = given;
    const int ins = job->weights->ins;
    if (is_quantised(job->weights->kind))
        for (int row; (row = team_next(team)) < job->rows;) quantise(job->in, (size_t)row * ins, ins);
    team_wait(team);
    linear(team, job->weights, job->in, job->rows, (Out){job->out, (size_t)job->weights->outs, 0, 1});
}

/* out [rows][outs] of states [rows][ins]. 0, or 1 where there is no memory. */
int native_linear(Team *team, const Linear *weights, float *states, int32_t rows, float *out) {
    const size_t numbers = (size_t)rows * weights->ins, groups = (numbers + GROUP - 1) / GROUP;
    float *memory = team_scratch(team, numbers + 3 * groups * sizeof(float));
    if (!memory) return 1;
    Rows in = {.values = states, .scales = memory};
    in.weighted = in.scales + groups;
    in.sums = (int32_t *)(in.weighted + groups);
    in.codes = (int8_t *)(in.sums + groups);
    Single job = {weights, in, out, rows};
    team_run(team, run, &job);
    return 0;
}
