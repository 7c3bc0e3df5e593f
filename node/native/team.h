/* A few threads that do one thing together and sleep when there is nothing to do.
 *
 * Everyone runs the same function; loops are shared out by `team_next`, and `team_wait` ends each of them. Who waits
 * spins for a moment, then gives the processor away: threads that spin for long take it from everybody else. */
#ifndef TEAM_H
#define TEAM_H

#include <stddef.h>

typedef struct Team Team;
typedef void (*Work)(Team *team, void *given, int member);

/* NULL where there is no memory; fewer threads than asked for where the system gives no more. */
Team *native_team(int members);
void native_team_free(Team *team);

int team_members(const Team *team);
/* Run `work` in every member, the caller among them; returns when all are done. */
void team_run(Team *team, Work work, void *given);
/* The next number of a shared loop, 0 and up. */
int team_next(Team *team);
/* Wait for the others; the next loop begins at 0 again. */
void team_wait(Team *team);
/* At least `size` bytes, aligned to 64, that stay until the next call; NULL where there is no memory. */
void *team_scratch(Team *team, size_t size);

#endif
