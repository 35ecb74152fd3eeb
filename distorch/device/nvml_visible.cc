// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "distorch/device/nvml.h"

namespace distorch {

std::vector<std::size_t> VisibleNvml(std::string_view value, bool unset,
                                     const std::vector<NvmlDevice>& devices) {
  std::vector<std::size_t> visible;
  // The device at `at`, or the first slice of a card that is cut.
  const auto show = [&](std::size_t at) {
    if (devices[at].cut) {
      ++at;
      if (at == devices.size() || devices[at].slice < 0) return false;
    }
    visible.push_back(at);
    return true;
  };
  if (unset) {
    for (std::size_t i = 0; i < devices.size(); ++i) {
      if (devices[i].slice < 0) show(i);
    }
    return visible;
  }
  for (absl::string_view entry :
       absl::StrSplit(absl::string_view(value.data(), value.size()), ',')) {
    entry = absl::StripAsciiWhitespace(entry);
    int index = -1;
    const auto found = std::find_if(
        devices.begin(), devices.end(), [&](const NvmlDevice& device) {
          if (absl::SimpleAtoi(entry, &index)) {
            return device.slice < 0 && device.index == index;
          }
          return !entry.empty() && absl::StartsWith(device.uuid, entry);
        });
    if (found == devices.end()) return visible;
    if (!show(static_cast<std::size_t>(found - devices.begin()))) {
      return visible;
    }
  }
  return visible;
}

}  // namespace distorch
