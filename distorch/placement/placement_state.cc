// SPDX-License-Identifier: Apache-2.0
// What a placement knows without asking a table: targets, sizes, reports, and
// the comparison with what was read back.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "distorch/placement/placement.h"

namespace distorch {

Placement::Placement(std::vector<DeviceId> devices, uint32_t compute,
                     std::vector<PlacedBlock> blocks,
                     std::vector<TensorInfo> tensors)
    : devices_(std::move(devices)),
      compute_(compute),
      blocks_(std::move(blocks)),
      tensors_(std::move(tensors)),
      of_block_(blocks_.size()),
      block_bytes_(blocks_.size()),
      spilled_(blocks_.size()),
      states_(tensors_.size()) {
  for (uint32_t d = 0; d < devices_.size(); ++d) {
    if (devices_[d].IsHost()) host_ = d;
  }
  for (uint32_t i = 0; i < tensors_.size(); ++i) {
    const TensorInfo& info = tensors_[i];
    of_block_[info.block].push_back(i);
    states_[i].device = info.device;
    if (info.same == i) block_bytes_[info.block] += info.bytes();
  }
}

absl::Status Placement::Assign(std::vector<uint32_t> device_of_block) {
  if (device_of_block.size() != blocks_.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("places for ", device_of_block.size(), " of ",
                     blocks_.size(), " blocks"));
  }
  for (uint32_t n = 0; n < blocks_.size(); ++n) {
    if (device_of_block[n] >= devices_.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("block ", blocks_[n].name, ": no device ",
                       device_of_block[n], " among ", devices_.size()));
    }
  }
  assigned_ = std::move(device_of_block);
  std::fill(spilled_.begin(), spilled_.end(), false);
  return absl::OkStatus();
}

Bytes Placement::Fit(Bytes budget) {
  Bytes room = budget;
  for (uint32_t n = 0; n < blocks_.size(); ++n) {
    if (assigned_[n] == compute_ && blocks_[n].stays) room -= block_bytes_[n];
  }
  Bytes left_out;
  for (uint32_t n = 0; n < blocks_.size(); ++n) {
    if (assigned_[n] != compute_ || blocks_[n].stays) continue;
    spilled_[n] = block_bytes_[n] > room;
    if (spilled_[n]) {
      left_out += block_bytes_[n];
    } else {
      room -= block_bytes_[n];
    }
  }
  return left_out;
}

absl::Status Placement::Verify(TensorTable& table) const {
  const std::vector<int64_t> found = table.ReadBack();
  if (found.size() != tensors_.size()) {
    return absl::InternalError(absl::StrCat(
        found.size(), " of ", tensors_.size(), " tensors were read back"));
  }
  for (uint32_t i = 0; i < tensors_.size(); ++i) {
    const uint32_t block = tensors_[i].block;
    const uint32_t wanted = Target(block);
    if (found[i] == static_cast<int64_t>(wanted)) continue;
    return absl::InternalError(absl::StrCat(
        "block ", blocks_[block].name, " is on ", table.PlaceOf(i),
        spilled_[block] ? ", it was spilled to " : ", the plan says ",
        devices_[wanted].ToString()));
  }
  return absl::OkStatus();
}

uint32_t Placement::Target(uint32_t block) const {
  return spilled_[block] ? host_ : assigned_[block];
}

bool Placement::UsesSlab(uint32_t block, uint32_t device) const {
  const PlacedBlock& placed = blocks_[block];
  return !placed.group.empty() && placed.in_slab && device != compute_ &&
         compute_ != host_;
}

std::vector<Bytes> Placement::BytesPerDevice() const {
  std::vector<Bytes> sums(devices_.size());
  for (uint32_t i = 0; i < tensors_.size(); ++i) {
    if (tensors_[i].same == i) sums[states_[i].device] += tensors_[i].bytes();
  }
  return sums;
}

}  // namespace distorch
