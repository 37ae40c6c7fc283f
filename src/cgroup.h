// What the control groups of Linux (cgroup v1 and v2, as systemd and containers mount them) leave
// to this process: the least of its own group and of those around it. Infinity where nothing limits
// it, or the system does not say. Without allocation of their own, as the pool asks them.
#ifndef GROUPNORM_SRC_CGROUP_H
#define GROUPNORM_SRC_CGROUP_H

namespace groupnorm::detail {

// Processor time by time. `root`: where /proc and /sys lie.
double cgroup_cores(const char* root = "") noexcept;

// Bytes of memory beside what the group's processes have taken (files apart, which can go).
double cgroup_memory(const char* root = "") noexcept;

}  // namespace groupnorm::detail

#endif
