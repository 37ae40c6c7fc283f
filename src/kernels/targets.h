// The instruction sets that Highway compiles. SSSE3 and AVX3_DL would add nothing to SSE4 and
// AVX-512 here; SVE's vectors do not fit in arrays.
#ifndef GROUPNORM_SRC_KERNELS_TARGETS_H
#define GROUPNORM_SRC_KERNELS_TARGETS_H

// Read by Highway's headers, which must come after this one.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)

// The portable code of x86 runs where there is no SSE4: one number at a time is small, and does.
#if defined(__x86_64__) || defined(__i386__)
#define HWY_BROKEN_EMU128 1
#endif

#endif
