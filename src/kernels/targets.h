// The instruction sets that are compiled. Included before any header of Highway that depends on
// them.
#ifndef GROUPNORM_SRC_KERNELS_TARGETS_H
#define GROUPNORM_SRC_KERNELS_TARGETS_H

// All others are disabled, also those that only a later Highway knows, so that every version
// compiles the same. SSE2, SSSE3 and the further sets of AVX-512 and Arm would add little to
// these; the vectors of SVE and RISC-V do not fit in arrays.
#define HWY_DISABLED_TARGETS \
  (~(HWY_AVX3 | HWY_AVX2 | HWY_SSE4 | GROUPNORM_NEON | HWY_SCALAR | HWY_EMU128))

// The kernels need neither AES nor the carry-less product. Machines without them have SSE4 and
// AVX2, too.
#define HWY_DISABLE_PCLMUL_AES 1

// The portable code of x86 runs where there is no SSE4: one number at a time is small, and does.
#if defined(__x86_64__) || defined(__i386__)
#define HWY_BROKEN_EMU128 1
#endif

#include <hwy/detect_targets.h>

// 64-bit Arm's baseline: from Highway 1.0.4 on, the set that does without AES. NEON of 32 bits has
// no vectors of double.
#if !HWY_ARCH_ARM_A64
#define GROUPNORM_NEON 0
#elif defined(HWY_NEON_WITHOUT_AES)
#define GROUPNORM_NEON HWY_NEON_WITHOUT_AES
#else
#define GROUPNORM_NEON HWY_NEON
#endif

#endif
