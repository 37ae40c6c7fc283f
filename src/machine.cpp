#include "machine.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <limits>

#include "cgroup.h"

namespace groupnorm::detail {
namespace {

// Linux's description of cache `index` of core 0, into its place in `caches`.
bool read_sysfs(int index, Caches* caches) {
  const std::string folder =
      "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
  int level = 0;
  std::string type;
  std::size_t size = 0;
  char unit = 0;
  std::ifstream(folder + "level") >> level;
  std::ifstream(folder + "type") >> type;
  std::ifstream(folder + "size") >> size >> unit;
  if (level == 0) return false;
  if (type == "Instruction") return true;
  const std::size_t bytes = size * (unit == 'M' ? std::size_t{1} << 20 : std::size_t{1} << 10);
  if (level == 1) caches->l1d = bytes;
  if (level == 2) caches->l2 = bytes;
  if (level == 3) caches->l3 = bytes;
  return true;
}

double limit(decltype(RLIMIT_AS) resource) {
  rlimit found{};
  const bool known = getrlimit(resource, &found) == 0;
  return known && found.rlim_cur != RLIM_INFINITY ? static_cast<double>(found.rlim_cur)
                                                  : std::numeric_limits<double>::infinity();
}

}  // namespace

Caches caches() {
  Caches found;
  for (int index = 0; read_sysfs(index, &found); ++index) continue;
#ifdef _SC_LEVEL3_CACHE_SIZE
  // Second choice: on a virtual machine it may be all the caches of the host.
  const auto ask = [](int name, std::size_t* size) {
    const long answer = sysconf(name);
    if (*size == 0 && answer > 0) *size = static_cast<std::size_t>(answer);
  };
  ask(_SC_LEVEL1_DCACHE_SIZE, &found.l1d);
  ask(_SC_LEVEL2_CACHE_SIZE, &found.l2);
  ask(_SC_LEVEL3_CACHE_SIZE, &found.l3);
#endif
  return found;
}

std::string processor() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

double allowed_memory() {
  const auto page = static_cast<double>(sysconf(_SC_PAGESIZE));
  const auto pages = static_cast<double>(sysconf(_SC_PHYS_PAGES));
  // The system counts late what a process takes, and there is more to it than tensors.
  constexpr double kRest = 8 << 20;
  double memory = cgroup_memory() - kRest;
  if (page > 0 && pages > 0) memory = std::min(memory, pages * page);
  // Pages: all of its address space, resident, shared, code, 0, data and stack.
  double space = 0, other = 0, data = 0;
  std::ifstream("/proc/self/statm") >> space >> other >> other >> other >> other >> data;
  memory = std::min(memory, limit(RLIMIT_AS) - space * page);
  memory = std::min(memory, limit(RLIMIT_DATA) - data * page);
  return std::max(memory, 0.0);
}

std::size_t rotating_sets(std::size_t set_bytes, double memory) {
  const std::size_t wanted = std::max(4 * caches().last_level(), std::size_t{256} << 20);
  const double most = memory / 2 / static_cast<double>(set_bytes);
  if (most < 2) return 1;
  const std::size_t sets = std::max<std::size_t>(2, (wanted + set_bytes - 1) / set_bytes);
  return static_cast<std::size_t>(std::min(static_cast<double>(sets), most));
}

std::string format_bytes(double bytes) {
  const char* const units[] = {"B", "KB", "MB", "GB", "TB", "PB", "EB"};
  std::size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(units)) {
    bytes /= 1024;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof(text), bytes < 10 && unit > 0 ? "%.1f %s" : "%.0f %s", bytes,
                units[unit]);
  return text;
}

}  // namespace groupnorm::detail
