// What the machine has, and what of it measurements take: for the command lines of C++ and Python.
#ifndef GROUPNORM_SRC_MACHINE_H
#define GROUPNORM_SRC_MACHINE_H

#include <cstddef>
#include <string>

namespace groupnorm::detail {

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

// How many sets of `set_bytes` bytes to go round, so that a set has left the caches when its turn
// comes again: together 4 times the last-level cache and 256 MB at least, as far as half of
// `memory` bytes holds them; 1 where it does not hold two.
std::size_t rotating_sets(std::size_t set_bytes, double memory);

// "512 KB", "1.6 GB": powers of 1024.
std::string format_bytes(double bytes);

}  // namespace groupnorm::detail

#endif
