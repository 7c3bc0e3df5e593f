#include "team.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include "lanes.h"

/* About two microseconds: what a member takes to come from the end of an evenly shared loop. */
#define SPINS 100
/* Between two layers' worth of calls of a decode step; longer silences are slept through. */
#define IDLE_SPINS 2000

typedef struct {
    Team *team;
    int member;
} Member;

struct Team {
    int members;
    pthread_t *threads;
    Member *each;
    void *scratch;
    size_t scratch_size;
    Work work;
    void *given;
    int ending;
    pthread_mutex_t lock;
    pthread_cond_t begun;
    _Alignas(64) unsigned job;
    _Alignas(64) int next;
    _Alignas(64) int arrived;
    _Alignas(64) unsigned round;
};

INLINE void breathe(void) {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

int team_members(const Team *team) { return team->members; }

int team_next(Team *team) { return __atomic_fetch_add(&team->next, 1, __ATOMIC_RELAXED); }

void team_wait(Team *team) {
    unsigned round = __atomic_load_n(&team->round, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&team->arrived, 1, __ATOMIC_ACQ_REL) == team->members) {
        __atomic_store_n(&team->arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&team->next, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&team->round, round + 1, __ATOMIC_RELEASE);
        return;
    }
    for (int i = 0; __atomic_load_n(&team->round, __ATOMIC_ACQUIRE) == round; i++) {
        if (i < SPINS)
            breathe();
        else
            sched_yield();
    }
}

static void *serve(void *given) {
    Member *self = given;
    Team *team = self->team;
    unsigned seen = 0;
    set_rounding();
    for (;;) {
        for (int i = 0; i < IDLE_SPINS && __atomic_load_n(&team->job, __ATOMIC_ACQUIRE) == seen; i++) breathe();
        pthread_mutex_lock(&team->lock);
        while (team->job == seen && !team->ending) pthread_cond_wait(&team->begun, &team->lock);
        int ending = team->ending;
        seen = team->job;
        pthread_mutex_unlock(&team->lock);
        if (ending) return NULL;
        team->work(team, team->given, self->member);
        team_wait(team);
    }
}

void team_run(Team *team, Work work, void *given) {
    uint64_t rounding = set_rounding();
    if (team->members > 1) {
        pthread_mutex_lock(&team->lock);
        team->work = work;
        team->given = given;
        __atomic_store_n(&team->job, team->job + 1, __ATOMIC_RELEASE);
        pthread_cond_broadcast(&team->begun);
        pthread_mutex_unlock(&team->lock);
    }
    work(team, given, 0);
    team_wait(team);
    restore_rounding(rounding);
}

Team *native_team(int members) {
    Team *team = aligned_alloc(64, (sizeof *team + 63) & ~(size_t)63);
    if (!team) return NULL;
    memset(team, 0, sizeof *team);
    pthread_mutex_init(&team->lock, NULL);
    pthread_cond_init(&team->begun, NULL);
    team->threads = calloc((size_t)members, sizeof *team->threads);
    team->each = calloc((size_t)members, sizeof *team->each);
    team->members = 1;
    if (!team->threads || !team->each) {
        native_team_free(team);
        return NULL;
    }
    /* Nobody waits for the others before the first job, so the number may still grow. */
    for (int i = 1; i < members; i++) {
        team->each[i] = (Member){team, i};
        if (pthread_create(&team->threads[i], NULL, serve, &team->each[i])) break;
        team->members = i + 1;
    }
    return team;
}

void native_team_free(Team *team) {
    pthread_mutex_lock(&team->lock);
    team->ending = 1;
    pthread_cond_broadcast(&team->begun);
    pthread_mutex_unlock(&team->lock);
    for (int i = 1; i < team->members; i++) pthread_join(team->threads[i], NULL);
    pthread_cond_destroy(&team->begun);
    pthread_mutex_destroy(&team->lock);
    free(team->threads);
    free(team->each);
    free(team->scratch);
    free(team);
}

void *team_scratch(Team *team, size_t size) {
    if (size > team->scratch_size) {
        free(team->scratch);
        team->scratch_size = (size + 4095) & ~(size_t)4095;
        team->scratch = aligned_alloc(4096, team->scratch_size);
        if (!team->scratch) team->scratch_size = 0;
    }
    return team->scratch;
}
