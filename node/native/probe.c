/* What this object was built for, and whether this processor runs it: asked before anything else of it is called. */
#include <string.h>

int native_runs(const char *isa) {
#if defined(__x86_64__)
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (!strcmp(isa, "avx512vnni"))
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vnni");
    if (!strcmp(isa, "avx2")) return avx2;
#elif defined(__aarch64__)
    if (!strcmp(isa, "neon")) return 1;
#endif
    return !strcmp(isa, "plain");
}
