// SPDX-License-Identifier: Apache-2.0
// The buffers of one ordered pair of places: a part of StagedTransfer.
#ifndef DISTORCH_TRANSFER_STAGED_LANE_H_
#define DISTORCH_TRANSFER_STAGED_LANE_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "distorch/transfer/transfer.h"

namespace distorch {

// Two pinned buffers and their events, for one ordered pair. The host end of a
// pair has no stream and no event: the host itself copies and waits.
class StagedLane {
 public:
  StagedLane(const CudaFunctions& cuda, int source, int target,
             std::int64_t chunk)
      : cuda_(cuda), source_(source), target_(target), chunk_(chunk) {}
  StagedLane(const StagedLane&) = delete;  // owns pinned memory
  StagedLane& operator=(const StagedLane&) = delete;
  ~StagedLane();

  // Makes buffers, streams and events; before the first copy.
  absl::Status Make();
  // As StagedTransfer's. REQUIRES: one call at a time.
  absl::Status Copy(const CopyRequest& request);

 private:
  struct Slot {
    void* buffer = nullptr;
    void* filled = nullptr;   // source's device: the bytes are in the buffer
    void* drained = nullptr;  // target's device: the buffer may be overwritten
    bool busy = false;        // `drained` was recorded
  };

  absl::Status FromHost(const CopyRequest& request);
  absl::Status ToHost(const CopyRequest& request);
  absl::Status Between(const CopyRequest& request);
  absl::Status MakeEvent(int device, void** event);
  absl::Status MakeStream(int device, void** stream);
  absl::Status Move(void* target, const void* source, std::int64_t bytes,
                    StreamOn stream);
  absl::Status Record(void* event, StreamOn stream);
  absl::Status Wait(StreamOn stream, void* event);
  absl::Status HostWait(void* event, int device, std::int64_t bytes);
  absl::Status Done(const char* call, int device, std::int64_t bytes, int code);
  void Settled(int code);
  void Settle(const CopyRequest& request);
  Slot& slot(std::int64_t chunk_index) {
    return slots_[static_cast<std::size_t>(chunk_index % 2)];
  }

  const CudaFunctions& cuda_;
  const int source_;
  const int target_;
  const std::int64_t chunk_;
  std::array<Slot, 2> slots_;
  // The ends' own streams: the caller's is on one device only.
  void* source_stream_ = nullptr;
  void* target_stream_ = nullptr;
  void* entry_source_ = nullptr;  // events: the caller's stream has come here
  void* entry_target_ = nullptr;
  // A copy did not end in the host's patience: no other is begun, and the
  // buffers are never given back.
  bool stalled_ = false;
};

}  // namespace distorch

#endif  // DISTORCH_TRANSFER_STAGED_LANE_H_
