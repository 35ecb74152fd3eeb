// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "allocation/parse_error.h"
#include "allocation/parser_impl.h"

namespace distorch::parser_internal {

std::string Quoted(std::string_view text) {
  constexpr size_t kLongest = 40;
  const std::string_view shown = text.substr(0, kLongest);
  return absl::StrCat("'", absl::string_view(shown.data(), shown.size()),
                      shown.size() < text.size() ? "...'" : "'");
}

bool Parser::Fail(std::string problem, std::string_view expected, size_t begin,
                  std::optional<size_t> end) {
  const std::string_view text = scanner_.text();
  const std::string_view fragment =
      end ? text.substr(begin, *end - begin) : scanner_.FragmentAt(begin);
  error_.problem = std::move(problem);
  error_.offset = begin;
  error_.fragment = std::string(fragment);
  error_.expected = std::string(expected);
  error_.caret = CaretLines(text, begin, fragment.size());
  return false;
}

bool Parser::FailHere(std::string_view wanted, std::string_view expected) {
  const size_t begin = scanner_.Position();
  const std::string_view fragment = scanner_.FragmentAt(begin);
  const absl::string_view missing(wanted.data(), wanted.size());
  if (fragment.empty()) {
    return Fail(absl::StrCat("the string ends where ", missing, " should be"),
                expected, begin);
  }
  return Fail(
      absl::StrCat(Quoted(fragment), " stands where ", missing, " should be"),
      expected, begin);
}

bool Parser::ConsumeDevice(DeviceId* device) {
  const size_t begin = scanner_.Position();
  if (!ConsumeKind(device)) return false;
  if (scanner_.Consume(':') && !ConsumeIndex(device)) return false;
  return CheckIsThere(*device, begin);
}

bool Parser::ConsumeKind(DeviceId* device) {
  const size_t begin = scanner_.Position();
  const std::string_view word = scanner_.ConsumeWord();
  if (word.empty()) return FailHere("a device", ExpectedDevices());
  *device = DeviceId(std::string(TorchKind(ToLower(word))));
  if (IsKnownKind(device->kind)) return true;
  return Fail(absl::StrCat("unknown kind of device ", Quoted(word)),
              ExpectedDevices(), begin, begin + word.size());
}

bool Parser::ConsumeIndex(DeviceId* device) {
  const size_t begin = scanner_.Position();
  const NumberResult result =
      scanner_.ConsumeIndex(DeviceId::kMaxIndex, &device->index);
  if (result == NumberResult::kNone) {
    return FailHere("the index of a device", "a number as in cuda:0");
  }
  if (result == NumberResult::kTooLarge) {
    return Fail("the index of a device is out of range",
                absl::StrCat("0 to ", DeviceId::kMaxIndex), begin);
  }
  if (!DeviceId::KindHasIndex(device->kind) && device->index != 0) {
    return Fail(absl::StrCat(device->kind, " has no index"), device->kind,
                begin);
  }
  return true;
}

bool Parser::IsKnownKind(const std::string& kind) const {
  const auto has = [&kind](const std::vector<std::string>& kinds) {
    return std::find(kinds.begin(), kinds.end(), kind) != kinds.end();
  };
  return has(KnownKinds()) || has(options_.extra_kinds) ||
         std::any_of(
             options_.devices.begin(), options_.devices.end(),
             [&kind](const DeviceId& device) { return device.kind == kind; });
}

bool Parser::CheckIsThere(const DeviceId& device, size_t begin) {
  const std::vector<DeviceId>& devices = options_.devices;
  if (devices.empty() || device.IsHost() ||
      std::find(devices.begin(), devices.end(), device) != devices.end()) {
    return true;
  }
  return Fail(absl::StrCat("there is no device ", device.ToString()),
              ExpectedDevices(), begin, scanner_.LastEnd());
}

// The devices that are there, or the kinds where that is not known.
std::string Parser::ExpectedDevices() const {
  if (options_.devices.empty()) {
    std::vector<std::string> kinds = KnownKinds();
    kinds.insert(kinds.end(), options_.extra_kinds.begin(),
                 options_.extra_kinds.end());
    return absl::StrCat("one of ", absl::StrJoin(kinds, ", "),
                        " (with an index as in cuda:0)");
  }
  std::vector<std::string> names;
  names.reserve(options_.devices.size() + 1);
  bool host = false;
  for (const DeviceId& device : options_.devices) {
    names.push_back(device.ToString());
    host = host || device.IsHost();
  }
  if (!host) names.emplace_back("cpu");
  return absl::StrCat("one of ", absl::StrJoin(names, ", "));
}

}  // namespace distorch::parser_internal
