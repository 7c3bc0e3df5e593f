/* What this object was built for, and whether this processor runs it: asked before anything else of it is called. */
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>

/* Compilers learned its name later than its instructions. */
static int has_avxvnni(void) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

static int has_dot_products(void) { return getauxval(AT_HWCAP) >> 20 & 1; }
#elif defined(__aarch64__)
static int has_dot_products(void) { return 1; } /* Apple's, all of them */
#endif

int native_runs(const char *isa) {
#if defined(__x86_64__)
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (!strcmp(isa, "avx512vnni"))
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vnni");
    if (!strcmp(isa, "avxvnni")) return avx2 && has_avxvnni();
    if (!strcmp(isa, "avx2")) return avx2;
#elif defined(__aarch64__)
    if (!strcmp(isa, "neondot")) return has_dot_products();
    if (!strcmp(isa, "neon")) return 1;
#endif
    return !strcmp(isa, "plain");
}
