// SPDX-License-Identifier: Apache-2.0
#include "allocation/device_id.h"

#include <array>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace distorch {
namespace {

bool IsKind(std::string_view text) {
  if (text.empty() ||
      absl::ascii_isdigit(static_cast<unsigned char>(text[0]))) {
    return false;
  }
  for (const char c : text) {
    if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '_') {
      return false;
    }
  }
  return true;
}

std::optional<int> ReadIndex(std::string_view digits) {
  if (digits.empty()) return std::nullopt;
  int index = 0;
  for (const char c : digits) {
    if (c < '0' || c > '9') return std::nullopt;
    index = index * 10 + (c - '0');
    if (index > DeviceId::kMaxIndex) return std::nullopt;
  }
  return index;
}

}  // namespace

std::string_view TorchKind(std::string_view kind) {
  constexpr std::array<std::array<std::string_view, 2>, 3> kNames = {
      {{"corex", "cuda"}, {"ixuca", "cuda"}, {"directml", "privateuseone"}}};
  for (const auto& [vendors, torchs] : kNames) {
    if (kind == vendors) return torchs;
  }
  return kind;
}

std::optional<DeviceId> DeviceId::FromString(std::string_view text) {
  const size_t colon = text.find(':');
  const std::string_view kind = text.substr(0, colon);
  if (!IsKind(kind)) return std::nullopt;
  const std::string lower =
      absl::AsciiStrToLower(absl::string_view(kind.data(), kind.size()));
  DeviceId device{std::string(TorchKind(lower))};
  if (colon == std::string_view::npos) return device;
  const std::optional<int> index = ReadIndex(text.substr(colon + 1));
  if (!index) return std::nullopt;
  if (!KindHasIndex(device.kind) && *index != 0) return std::nullopt;
  device.index = *index;
  return device;
}

std::string DeviceId::ToString() const {
  if (kind.empty()) return "(no device)";
  return KindHasIndex(kind) ? absl::StrCat(kind, ":", index) : kind;
}

}  // namespace distorch
