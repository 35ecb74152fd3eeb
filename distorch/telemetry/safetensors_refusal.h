// SPDX-License-Identifier: Apache-2.0
// How a safetensors header is refused. For safetensors_header*.cc alone.
#ifndef DISTORCH_DISTORCH_TELEMETRY_SAFETENSORS_REFUSAL_H_
#define DISTORCH_DISTORCH_TELEMETRY_SAFETENSORS_REFUSAL_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace distorch {

inline absl::string_view Absl(std::string_view s) {
  return {s.data(), s.size()};
}

// A name as it may stand in a message: short and printable.
inline std::string Shown(std::string_view name) {
  constexpr size_t kLongest = 100;
  return absl::StrCat("'", absl::CHexEscape(Absl(name.substr(0, kLongest))),
                      name.size() > kLongest ? "...'" : "'");
}

inline absl::Status Refuse(std::string_view name, std::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("tensor ", Shown(name), ": ", Absl(what)));
}

}  // namespace distorch

#endif  // DISTORCH_DISTORCH_TELEMETRY_SAFETENSORS_REFUSAL_H_
