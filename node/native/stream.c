/* Reads memory and does nothing else: what decoding is measured against. */
#include "lanes.h"
#include "team.h"

#define PIECE (1 << 18)
#define AHEAD 8192

typedef struct {
    const char *from;
    int pieces;
    int32_t sum;
} Reading;

static void read_pieces(Team *team, void *given, int member) {
    (void)member;
    Reading *job = given;
    ivec sums[4] = {{0}};
    for (int piece; (piece = team_next(team)) < job->pieces;) {
        const char *from = job->from + (size_t)piece * PIECE;
        for (size_t at = 0; at < PIECE; at += sizeof sums) {
            for (size_t line = 0; line < sizeof sums; line += 64) __builtin_prefetch(from + at + AHEAD + line);
            for (int i = 0; i < 4; i++) sums[i] += (ivec)load((const float *)(from + at) + i * WIDTH);
        }
    }
    ivec sum = sums[0] + sums[1] + sums[2] + sums[3];
    for (int i = 0; i < WIDTH; i++) __atomic_fetch_add(&job->sum, sum[i], __ATOMIC_RELAXED);
}

/* Reads whole pieces of 256 KiB of these bytes; the sum, so that nobody leaves the reading out. */
int32_t native_read(Team *team, const char *from, int64_t bytes) {
    Reading job = {from, (int)(bytes / PIECE), 0};
    team_run(team, read_pieces, &job);
    return job.sum;
}
