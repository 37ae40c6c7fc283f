// What is read of control groups, from files as Linux has them. (To make real groups takes rights
// that tests do not have.)
#include "cgroup.h"

#include <gtest/gtest.h>

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>

namespace groupnorm::testing {
namespace {

class Cgroup : public ::testing::Test {
 protected:
  Cgroup() {
    std::string name = (std::filesystem::temp_directory_path() / "cgroup.XXXXXX").string();
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    root_ = name;
  }
  ~Cgroup() override { std::filesystem::remove_all(root_); }

  void write(const std::string& file, const std::string& text) {
    const std::filesystem::path path = root_.string() + file;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }
  double cores() const { return detail::cgroup_cores(root_.c_str()); }
  double memory() const { return detail::cgroup_memory(root_.c_str()); }

 private:
  std::filesystem::path root_;
};

TEST_F(Cgroup, LimitsNothingWhereThereIsNone) {
  EXPECT_TRUE(std::isinf(cores()));
  EXPECT_TRUE(std::isinf(memory()));
  write("/proc/self/cgroup", "not\na file : of\n\n::\nthis kind");
  EXPECT_TRUE(std::isinf(cores()));
  EXPECT_TRUE(std::isinf(memory()));
}

TEST_F(Cgroup, V2TakesTheLeastOfItsOwnGroupAndThoseAround) {
  write("/proc/self/cgroup", "0::/user.slice/job\n");
  write("/sys/fs/cgroup/user.slice/job/cpu.max", "max 100000\n");
  write("/sys/fs/cgroup/user.slice/job/memory.max", "max\n");
  EXPECT_TRUE(std::isinf(cores()));
  EXPECT_TRUE(std::isinf(memory()));
  write("/sys/fs/cgroup/user.slice/cpu.max", "250000 100000\n");
  write("/sys/fs/cgroup/user.slice/memory.max", "209715200\n");
  write("/sys/fs/cgroup/user.slice/memory.stat", "inactive_anon 7\nanon 1000\nfile 50000\n");
  EXPECT_EQ(cores(), 2.5);
  EXPECT_EQ(memory(), 209715200 - 1000);
  write("/sys/fs/cgroup/user.slice/job/cpu.max", "50000 100000\n");
  write("/sys/fs/cgroup/user.slice/job/memory.max", "4096\n");
  EXPECT_EQ(cores(), 0.5);
  EXPECT_EQ(memory(), 4096);
  write("/sys/fs/cgroup/user.slice/job/memory.stat", "anon 5000\n");
  EXPECT_EQ(memory(), 0);
}

// In a container: its own group is the root, or has a path that is not mounted.
TEST_F(Cgroup, OfAContainer) {
  write("/sys/fs/cgroup/cpu.max", "150000 50000\n");
  write("/sys/fs/cgroup/memory.max", "1000000\n");
  for (const char* const line : {"0::/\n", "0::/docker/0123\n", "0::/../outside\n"}) {
    write("/proc/self/cgroup", line);
    EXPECT_EQ(cores(), 3) << line;
    EXPECT_EQ(memory(), 1000000) << line;
  }
}

TEST_F(Cgroup, V1) {
  write("/proc/self/cgroup", "5:cpuset:/\n4:memory:/job\n3:cpuacct,cpu:/job\n1:name=systemd:/x\n");
  write("/sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "-1\n");
  write("/sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n");
  EXPECT_TRUE(std::isinf(cores()));
  write("/sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "120000\n");
  EXPECT_EQ(cores(), 1.2);
  write("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "209715200\n");
  write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  write("/sys/fs/cgroup/memory/job/memory.stat", "rss 1\ntotal_rss_huge 2\ntotal_rss 300\n");
  EXPECT_EQ(memory(), 209715200 - 300);
}

}  // namespace
}  // namespace groupnorm::testing
