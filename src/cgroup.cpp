#include "cgroup.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string_view>
#include <system_error>

namespace groupnorm::detail {
namespace {

constexpr double kUnlimited = std::numeric_limits<double>::infinity();

// A path, cut where it is too long: then there is no such file.
class Path {
 public:
  Path(const char* root, std::string_view folder, std::string_view group, const char* file) {
    std::snprintf(text_, sizeof(text_), "%s%.*s%.*s%s", root, static_cast<int>(folder.size()),
                  folder.data(), static_cast<int>(group.size()), group.data(), file);
  }
  const char* text() const { return text_; }

 private:
  char text_[4096];
};

// The beginning of a file; empty where there is none.
class Text {
 public:
  explicit Text(const Path& path) {
    std::FILE* const file = std::fopen(path.text(), "r");
    if (file == nullptr) return;
    size_ = std::fread(bytes_, 1, sizeof(bytes_), file);
    std::fclose(file);
  }
  std::string_view view() const { return {bytes_, size_}; }

 private:
  char bytes_[4096];
  std::size_t size_ = 0;
};

// What stands before the first `mark`, which goes with it.
std::string_view take(std::string_view* text, char mark) {
  const std::size_t end = std::min(text->find(mark), text->size());
  const std::string_view taken = text->substr(0, end);
  text->remove_prefix(std::min(end + 1, text->size()));
  return taken;
}

double number(std::string_view text, double none) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() ? static_cast<double>(value) : none;
}

// The number on the line that begins with `name`, or 0.
double number_of(std::string_view lines, std::string_view name) {
  while (!lines.empty()) {
    const std::string_view line = take(&lines, '\n');
    if (line.starts_with(name)) return number(line.substr(name.size()), 0);
  }
  return 0;
}

// Whether `name` stands in "cpu,cpuacct".
bool lists(std::string_view controllers, std::string_view name) {
  while (!controllers.empty()) {
    if (take(&controllers, ',') == name) return true;
  }
  return false;
}

// The least limit(folder, group) of the group at `path` and all around it, under `folder`. In a
// container that sees no more than its own group, the outer ones are the root alone.
template <class Limit>
double least(std::string_view folder, std::string_view path, const Limit& limit) {
  double found = kUnlimited;
  for (;;) {
    found = std::min(found, limit(folder, path));
    if (path.empty()) return found;
    path = path.substr(0, path.find_last_of('/'));
  }
}

// /proc/self/cgroup: a line "0::/path" of v2, and of v1 one "number:controllers:/path" each.
template <class V2, class V1>
double least_of_all(const char* root, std::string_view controller, const char* v1_folder,
                    const V2& v2, const V1& v1) {
  const Text groups(Path(root, "/proc/self/cgroup", "", ""));
  double found = kUnlimited;
  for (std::string_view lines = groups.view(); !lines.empty();) {
    std::string_view line = take(&lines, '\n');
    take(&line, ':');
    const std::string_view controllers = take(&line, ':');
    const std::string_view path = line == "/" ? line.substr(1) : line;
    if (controllers.empty()) {
      found = std::min(
          {found, least("/sys/fs/cgroup", path, v2), least("/sys/fs/cgroup/unified", path, v2)});
    } else if (lists(controllers, controller)) {
      found = std::min(found, least(v1_folder, path, v1));
    }
  }
  return found;
}

}  // namespace

double cgroup_cores(const char* root) noexcept {
  const auto v2 = [=](std::string_view folder, std::string_view group) {
    const Text text(Path(root, folder, group, "/cpu.max"));  // "50000 100000", "max 100000"
    std::string_view period = text.view();
    const double quota = number(take(&period, ' '), kUnlimited);
    return quota / number(period, 1);
  };
  const auto v1 = [=](std::string_view folder, std::string_view group) {
    const Text quota(Path(root, folder, group, "/cpu.cfs_quota_us"));  // -1: none
    const Text period(Path(root, folder, group, "/cpu.cfs_period_us"));
    const double cores = number(quota.view(), -1) / number(period.view(), 1);
    return cores > 0 ? cores : kUnlimited;
  };
  return least_of_all(root, "cpu", "/sys/fs/cgroup/cpu", v2, v1);
}

double cgroup_memory(const char* root) noexcept {
  const auto left = [=](std::string_view folder, std::string_view group, const char* limit,
                        const char* taken) {
    const Text most(Path(root, folder, group, limit));
    const Text use(Path(root, folder, group, "/memory.stat"));
    return number(most.view(), kUnlimited) - number_of(use.view(), taken);
  };
  const auto v2 = [=](std::string_view folder, std::string_view group) {
    return left(folder, group, "/memory.max", "anon ");
  };
  const auto v1 = [=](std::string_view folder, std::string_view group) {
    return left(folder, group, "/memory.limit_in_bytes", "total_rss ");
  };
  return std::max(0.0, least_of_all(root, "memory", "/sys/fs/cgroup/memory", v2, v1));
}

}  // namespace groupnorm::detail
