/* Pieces of one block of memory. */
#ifndef ARENA_H
#define ARENA_H

#include "quant.h"

/* Counts only, where there is no block yet. */
typedef struct {
    char *memory;
    size_t used;
} Arena;

/* The next `size` bytes, aligned to 64. */
static inline void *take(Arena *arena, size_t size) {
    void *piece = arena->memory ? arena->memory + arena->used : NULL;
    arena->used += (size + 63) & ~(size_t)63;
    return piece;
}

/* Room for so many rows of at most `wide` numbers. */
static inline Rows take_rows(Arena *arena, size_t rows, size_t wide) {
    const size_t groups = rows * (wide / GROUP + 1);
    Rows taken;
    taken.values = take(arena, rows * wide * sizeof(float));
    taken.codes = take(arena, rows * wide);
    taken.scales = take(arena, groups * sizeof(float));
    taken.weighted = take(arena, groups * sizeof(float));
    taken.sums = take(arena, groups * sizeof(int32_t));
    return taken;
}

#endif
