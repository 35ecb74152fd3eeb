// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <string_view>
#include <vector>

#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"
#include "distorch/telemetry/safetensors_header.h"
#include "distorch/telemetry/safetensors_refusal.h"

namespace distorch {

// Hashes are sorted, not names: comparing two million names costs a second.
// Where hashes meet, the names decide.
absl::Status SafetensorsHeader::CheckNames() const {
  const auto check = [](size_t count, const auto& name_of) -> absl::Status {
    using Hash = absl::Hash<absl::string_view>;
    std::vector<uint64_t> hashes;
    hashes.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      hashes.push_back(Hash()(Absl(name_of(i))));
    }
    std::sort(hashes.begin(), hashes.end());
    std::vector<uint64_t> twice;
    for (size_t i = 1; i < count; ++i) {
      if (hashes[i] == hashes[i - 1]) twice.push_back(hashes[i]);
    }
    if (twice.empty()) return absl::OkStatus();
    std::vector<std::string_view> names;
    for (size_t i = 0; i < count; ++i) {
      if (std::binary_search(twice.begin(), twice.end(),
                             Hash()(Absl(name_of(i))))) {
        names.push_back(name_of(i));
      }
    }
    std::sort(names.begin(), names.end());
    const auto found = std::adjacent_find(names.begin(), names.end());
    if (found == names.end()) return absl::OkStatus();
    return absl::InvalidArgumentError(Shown(*found) + " is given twice");
  };
  absl::Status status =
      check(tensors_.size(), [this](size_t i) { return name(i); });
  if (!status.ok()) return status;
  return check(metadata_.size(),
               [this](size_t i) { return metadata(i).first; });
}

absl::Status SafetensorsHeader::CheckOffsets(uint64_t data_bytes) {
  const auto before = [](const Tensor& a, const Tensor& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  };
  if (!std::is_sorted(tensors_.begin(), tensors_.end(), before)) {
    std::sort(tensors_.begin(), tensors_.end(), before);
  }
  uint64_t at = 0;
  for (const Tensor& tensor : tensors_) {
    if (tensor.begin != at) {
      return Refuse(
          View(tensor.name),
          absl::StrCat(
              tensor.begin < at ? "overlaps the tensor" : "leaves a hole",
              " before it: starts at ", tensor.begin, ", expected ", at));
    }
    at = tensor.end;
  }
  if (at != data_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensors end at byte ", at, ", the file has ", data_bytes,
        at > data_bytes ? ": the file is truncated" : ": bytes are left over"));
  }
  return absl::OkStatus();
}

}  // namespace distorch
