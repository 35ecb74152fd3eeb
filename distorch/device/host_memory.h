// SPDX-License-Identifier: Apache-2.0
// How much memory the host has and may still be used, in bytes. Inside a
// container of Linux the limits of its control group (version 2 and 1) count
// too.
//
// Formats: proc_meminfo(5); the kernel's Documentation/admin-guide/cgroup-v2
// and cgroup-v1/memory. Windows: GlobalMemoryStatusEx. macOS: sysctl and
// host_statistics64 (not run there so far). All functions may be called from
// any thread.
#ifndef DISTORCH_DEVICE_HOST_MEMORY_H_
#define DISTORCH_DEVICE_HOST_MEMORY_H_

#include <cstdint>
#include <string>
#include <string_view>

namespace distorch {

struct HostMemory {
  std::int64_t total = 0;
  // Without swapping, reclaimable file pages counted as available. Never more
  // than `total`, never negative.
  std::int64_t available = 0;
};

// Reads the text of /proc/meminfo; fields that are missing stay 0.
HostMemory ParseMemInfo(std::string_view text);

// Reads this process's host memory. Both figures are 0 where the system does
// not tell.
HostMemory ReadHostMemory();

// The same from the files of Linux below the folder `root` ("" for this
// machine's). Files that cannot be read set no limit; both figures are 0 when
// not even meminfo can be read.
HostMemory ReadHostMemoryFiles(const std::string& root);

}  // namespace distorch

#endif  // DISTORCH_DEVICE_HOST_MEMORY_H_
