// What the machine has.
#ifndef GROUPNORM_TOOLS_MACHINE_H
#define GROUPNORM_TOOLS_MACHINE_H

#include <cstddef>
#include <string>

namespace groupnorm::tools {

// Bytes of the data caches that the first core sees; 0 where the system does not say.
struct Caches {
  std::size_t l1d = 0, l2 = 0, l3 = 0;
  std::size_t last_level() const { return l3 != 0 ? l3 : l2; }
};
Caches caches();

// Its model, or "unknown".
std::string processor();

// Bytes that this process may still take: the least of the machine's memory, what its control
// groups leave it and what its own limits do (ulimit -v, -d). Infinity where the system says
// nothing.
double allowed_memory();

// Throws BadInput where `bytes` are more than allowed_memory(): a clear refusal instead of a
// process that the system kills. `what` needs them.
void require_memory(double bytes, const std::string& what);

// "512 KB", "1.6 GB": powers of 1024.
std::string format_bytes(double bytes);

}  // namespace groupnorm::tools

#endif
