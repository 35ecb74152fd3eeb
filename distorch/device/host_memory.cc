// SPDX-License-Identifier: Apache-2.0
#include "distorch/device/host_memory.h"

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

HostMemory ReadHostMemory(const std::string& root) {
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

}  // namespace distorch
