// SPDX-License-Identifier: Apache-2.0
// One interface for moving bytes between two places, and the ways to do it on
// CUDA devices. A place is a device's number or kHost.
//
//   direct   cudaMemcpyAsync between host and device, or inside a device.
//            Pinned host memory: the host does not wait. Pageable memory: the
//            driver stages it and the host waits until its memory is free.
//   peer     cudaMemcpyPeerAsync, straight from one device to the other where
//            access between them could be enabled.
//   driver   the same call without access: the driver stages the bytes.
//   staged   through two pinned buffers of ours in turns: the copy out of one
//            runs beside the copy into the other.
//
// Ordering contract of Copy: the bytes move after what is queued on `stream`,
// and before what is queued there later. The host waits only where its own
// memory is pageable: then, on return, a source may be changed and a target may
// be read. `stream` belongs to the source's or the target's device; work on the
// other device is not ordered.
//
// No call depends on the calling thread's current device or changes it. Safe
// from several threads; copies of one pair that go through the same buffers
// queue one behind the other.
#ifndef DISTORCH_TRANSFER_TRANSFER_H_
#define DISTORCH_TRANSFER_TRANSFER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string_view>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "distorch/device/mutex.h"
#include "distorch/transfer/cuda_api.h"

namespace distorch {

inline constexpr int kHost = -1;

enum class Way { kDirect, kPeer, kDriver, kStaged };

// "direct", "peer", "driver", "staged".
std::string_view WayName(Way way);

// A stream and the device it belongs to; a null handle is the default stream.
struct StreamOn {
  int device = kHost;
  void* handle = nullptr;
};

struct CopyRequest {
  void* target = nullptr;
  int target_device = kHost;
  const void* source = nullptr;
  int source_device = kHost;
  std::int64_t bytes = 0;  // >= 0; the two ranges must not overlap
  StreamOn stream;
};

// InvalidArgument for a negative size, a null pointer with bytes, two hosts, or
// a stream of a third device.
absl::Status CheckRequest(const CopyRequest& request);

class Transfer {
 public:
  virtual ~Transfer() = default;
  virtual Way way() const = 0;
  // See the ordering contract. After an error the target's bytes are
  // undefined and nothing of this copy is under way any more.
  // Internal (ResourceExhausted for memory) with device, bytes and a remedy.
  virtual absl::Status Copy(const CopyRequest& request) = 0;
};

// REQUIRES of all three: `cuda` outlives them.

class DirectTransfer : public Transfer {
 public:
  explicit DirectTransfer(const CudaFunctions* cuda) : cuda_(*cuda) {}
  Way way() const override { return Way::kDirect; }
  absl::Status Copy(const CopyRequest& request) override;

 private:
  const CudaFunctions& cuda_;
};

// `direct_access` says under which name it goes: kPeer or kDriver.
class PeerTransfer : public Transfer {
 public:
  PeerTransfer(const CudaFunctions* cuda, bool direct_access)
      : cuda_(*cuda), way_(direct_access ? Way::kPeer : Way::kDriver) {}
  Way way() const override { return way_; }
  absl::Status Copy(const CopyRequest& request) override;

 private:
  const CudaFunctions& cuda_;
  Way way_;
};

// Enables access between two devices in both directions, once. True when copies
// go straight; false when the hardware cannot, or CUDA refuses.
bool EnablePeerAccess(const CudaFunctions& cuda, int source, int target);

class StagedLane;

class StagedTransfer : public Transfer {
 public:
  // Two buffers of `chunk` bytes of pinned memory for each ordered pair that is
  // used, made at its first copy and kept. 32 MiB: large enough that starting a
  // copy costs nothing beside it (about 10 us of 1 ms), small enough that a
  // block is cut into several, without which nothing overlaps.
  static constexpr std::int64_t kChunk = std::int64_t{32} << 20;
  explicit StagedTransfer(const CudaFunctions* cuda,
                          std::int64_t chunk = kChunk);
  ~StagedTransfer() override;  // waits for its copies

  StagedTransfer(const StagedTransfer&) = delete;  // owns pinned memory
  StagedTransfer& operator=(const StagedTransfer&) = delete;

  Way way() const override { return Way::kStaged; }
  // Makes the buffers of a pair now, so that no copy has to. As Copy's errors.
  absl::Status Prepare(int source_device, int target_device);
  // Between two devices, or pageable host memory and a device.
  absl::Status Copy(const CopyRequest& request) override;

 private:
  // Of one ordered pair. Copies of different pairs do not wait for each other.
  struct Pair {
    Mutex mutex;
    // Null before the first copy.
    std::unique_ptr<StagedLane> lane ABSL_GUARDED_BY(mutex)
        ABSL_PT_GUARDED_BY(mutex);
  };
  Pair& PairOf(int source, int target);
  absl::Status MakeLane(Pair& pair, int source, int target)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(pair.mutex);

  const CudaFunctions& cuda_;
  const std::int64_t chunk_;
  Mutex mutex_;
  // None is ever taken out, so that a pair is used without this lock.
  std::map<std::pair<int, int>, Pair> pairs_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace distorch

#endif  // DISTORCH_TRANSFER_TRANSFER_H_
