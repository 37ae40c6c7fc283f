#include "report.h"

#include <algorithm>
#include <cstdio>

#include "reference.h"
#include "verify.h"

namespace groupnorm::tools {
namespace {

constexpr std::size_t kMostRows = 16;

// mean, and 1 / rstd = the standard deviation, of the blocks of `data`.
detail::ReferenceResult measure(const Spec& spec, const void* data) {
  const Spec plain{
      .shape = spec.shape, .block = spec.block, .layout = spec.layout, .data = spec.data, .eps = 0};
  return detail::reference_forward(plain, {.x = data});
}

double deviation(double rstd) { return rstd > 0 ? 1 / rstd : 0; }

}  // namespace

bool report(const Spec& spec, const Forward& args) {
  const detail::ReferenceResult before = measure(spec, args.x), after = measure(spec, args.y);
  const std::size_t blocks = before.mean.size(), rows = std::min(blocks, kMostRows);
  std::printf("\nblock        mean   deviation  ->      mean   deviation\n");
  for (std::size_t i = 0; i < rows; ++i) {
    std::printf("%5zu %11.5g %11.5g %13.2g %11.7f\n", i, before.mean[i], deviation(before.rstd[i]),
                after.mean[i], deviation(after.rstd[i]));
  }
  if (rows < blocks) std::printf("  ... and %zu blocks more\n", blocks - rows);

  const testing::Comparison worst = verify(spec, args);
  std::printf("\nerror    %.3f of %.4g allowed: %s\n", worst.error, worst.bound,
              worst.within_bound() ? "ok" : "FAILED");
  return worst.within_bound();
}

}  // namespace groupnorm::tools
