// SPDX-License-Identifier: Apache-2.0
#include "distorch/device/host_memory.h"

#if defined(_WIN32)
#include <windows.h>
#elif defined(__APPLE__)
#include <mach/mach.h>
#include <sys/sysctl.h>
#endif

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace distorch {
namespace {

std::optional<std::string> ReadText(const std::string& path) {
  std::ifstream file(path);
  if (!file) return std::nullopt;
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// A file that holds one number; "max" and what cannot be read are nullopt.
std::optional<std::int64_t> ReadNumber(const std::string& path) {
  const auto text = ReadText(path);
  std::int64_t value = 0;
  if (!text || !absl::SimpleAtoi(absl::StripAsciiWhitespace(*text), &value)) {
    return std::nullopt;
  }
  return value;
}

// The value behind `key` in lines of "key value"; 0 when it is not there.
std::int64_t Field(const std::string& text, std::string_view key) {
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    std::int64_t value = 0;
    if (absl::ConsumePrefix(&line, {key.data(), key.size()}) &&
        absl::SimpleAtoi(absl::StripAsciiWhitespace(line), &value)) {
      return value;
    }
  }
  return 0;
}

struct Files {
  std::string limit;
  std::string usage;
  std::string_view reclaimable;  // a line of `stat`
  std::string stat;
};

void Apply(const Files& files, HostMemory& memory) {
  const auto limit = ReadNumber(files.limit);
  const auto usage = ReadNumber(files.usage);
  if (!limit || !usage || *limit <= 0 || *limit >= memory.total) return;
  const auto stat = ReadText(files.stat);
  const std::int64_t reclaimable =
      stat ? Field(*stat, files.reclaimable) : std::int64_t{0};
  const std::int64_t left = *limit - *usage + reclaimable;
  memory.total = *limit;
  memory.available = std::clamp<std::int64_t>(std::min(memory.available, left),
                                              0, memory.total);
}

// Every control group above this process may set a limit.
void ApplyVersion2(const std::string& root, std::string group,
                   HostMemory& memory) {
  while (true) {
    const std::string folder = absl::StrCat(root, "/sys/fs/cgroup", group);
    Apply({folder + "/memory.max", folder + "/memory.current", "inactive_file ",
           folder + "/memory.stat"},
          memory);
    const auto slash = group.rfind('/');
    if (group.empty() || slash == std::string::npos) return;
    group.resize(slash);
  }
}

}  // namespace

HostMemory ParseMemInfo(std::string_view text) {
  HostMemory memory;
  for (absl::string_view line :
       absl::StrSplit(absl::string_view(text.data(), text.size()), '\n')) {
    std::int64_t* target = nullptr;
    if (absl::ConsumePrefix(&line, "MemTotal:")) target = &memory.total;
    if (absl::ConsumePrefix(&line, "MemAvailable:")) target = &memory.available;
    if (target == nullptr || !absl::ConsumeSuffix(&line, " kB")) continue;
    std::int64_t kilobytes = 0;
    if (absl::SimpleAtoi(absl::StripAsciiWhitespace(line), &kilobytes)) {
      *target = kilobytes * 1024;
    }
  }
  memory.available =
      std::clamp<std::int64_t>(memory.available, 0, memory.total);
  return memory;
}

HostMemory ReadHostMemoryFiles(const std::string& root) {
  const auto info = ReadText(root + "/proc/meminfo");
  if (!info) return {};
  HostMemory memory = ParseMemInfo(*info);
  const auto groups = ReadText(root + "/proc/self/cgroup");
  if (!groups) return memory;
  for (absl::string_view line : absl::StrSplit(*groups, '\n')) {
    const std::vector<absl::string_view> parts =
        absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3) continue;
    std::string group(parts[2] == "/" ? absl::string_view() : parts[2]);
    if (parts[0] == "0" && parts[1].empty()) {
      ApplyVersion2(root, std::move(group), memory);
    } else if (parts[1] == "memory") {
      for (const std::string& base : {group, std::string()}) {
        const std::string folder =
            absl::StrCat(root, "/sys/fs/cgroup/memory", base);
        Apply({folder + "/memory.limit_in_bytes",
               folder + "/memory.usage_in_bytes", "total_inactive_file ",
               folder + "/memory.stat"},
              memory);
      }
    }
  }
  return memory;
}

HostMemory ReadHostMemory() {
#if defined(_WIN32)
  MEMORYSTATUSEX status{};
  status.dwLength = sizeof(status);
  if (GlobalMemoryStatusEx(&status) == 0) return {};
  return {static_cast<std::int64_t>(status.ullTotalPhys),
          static_cast<std::int64_t>(status.ullAvailPhys)};
#elif defined(__APPLE__)
  HostMemory memory;
  std::size_t size = sizeof(memory.total);
  vm_statistics64_data_t pages{};
  mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
  if (sysctlbyname("hw.memsize", &memory.total, &size, nullptr, 0) != 0 ||
      host_statistics64(mach_host_self(), HOST_VM_INFO64,
                        reinterpret_cast<host_info64_t>(&pages),
                        &count) != KERN_SUCCESS) {
    return {};
  }
  const std::int64_t free = std::int64_t{pages.free_count} +
                            pages.inactive_count + pages.purgeable_count;
  memory.available =
      std::min(memory.total, free * static_cast<std::int64_t>(vm_page_size));
  return memory;
#else
  return ReadHostMemoryFiles("");
#endif
}

}  // namespace distorch
