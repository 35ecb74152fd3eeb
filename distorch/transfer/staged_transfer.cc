// SPDX-License-Identifier: Apache-2.0
#include "distorch/transfer/staged_lane.h"
#include "distorch/transfer/transfer.h"

namespace distorch {

StagedTransfer::StagedTransfer(const CudaFunctions* cuda, std::int64_t chunk)
    : cuda_(*cuda), chunk_(chunk) {}

StagedTransfer::~StagedTransfer() = default;

StagedTransfer::Pair& StagedTransfer::PairOf(int source, int target) {
  const MutexLock lock(mutex_);
  return pairs_[{source, target}];
}

absl::Status StagedTransfer::MakeLane(Pair& pair, int source, int target) {
  if (pair.lane != nullptr) return absl::OkStatus();
  auto made = std::make_unique<StagedLane>(cuda_, source, target, chunk_);
  if (absl::Status s = made->Make(); !s.ok()) return s;
  pair.lane = std::move(made);
  return absl::OkStatus();
}

absl::Status StagedTransfer::Prepare(int source_device, int target_device) {
  Pair& pair = PairOf(source_device, target_device);
  const MutexLock lock(pair.mutex);
  return MakeLane(pair, source_device, target_device);
}

absl::Status StagedTransfer::Copy(const CopyRequest& request) {
  if (absl::Status wrong = CheckRequest(request); !wrong.ok()) return wrong;
  if (request.source_device == request.target_device) {
    return absl::InvalidArgumentError("a staged copy needs two places");
  }
  if (request.bytes == 0) return absl::OkStatus();
  Pair& pair = PairOf(request.source_device, request.target_device);
  const MutexLock lock(pair.mutex);
  absl::Status made =
      MakeLane(pair, request.source_device, request.target_device);
  return made.ok() ? pair.lane->Copy(request) : made;
}

}  // namespace distorch
