// SPDX-License-Identifier: Apache-2.0
// Chooses the way for each ordered pair of places, measured once, and copies by
// it.
//
//   Router router(*LoadCuda());
//   auto choice = router.Choose(0, 1);   // measures at the first call
//   choice->way, choice->gbps            // kPeer, 50.1
//   router.Copy({target, 1, source, 0, bytes, {1, stream}});
//
// The bytes that every candidate delivers are compared; one that delivers wrong
// ones (peer copies behind some IOMMUs do) is never chosen.
//
// GB/s are 2^30 bytes a second, as every size here. Safe from several threads;
// a pair is measured by the first that asks while the others wait.
#ifndef DISTORCH_TRANSFER_ROUTER_H_
#define DISTORCH_TRANSFER_ROUTER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "distorch/device/mutex.h"
#include "distorch/transfer/cuda_api.h"
#include "distorch/transfer/transfer.h"

namespace distorch {

enum class HostPages { kPinned, kPageable };

// What a way was found to be worth for a pair.
struct MeasuredWay {
  Way way = Way::kDirect;
  double gbps = 0;
  std::string error;  // why it cannot be used, or empty
};

struct Choice {
  Way way = Way::kDirect;
  double gbps = 0;
  bool peer_access = false;
  std::vector<MeasuredWay> candidates;  // in the order of trying
};

class Router {
 public:
  // Seconds since any fixed time.
  using Clock = std::function<double()>;
  // Enough that the cost of starting a copy is below one percent at 60 GB/s.
  static constexpr std::int64_t kSampleBytes = std::int64_t{64} << 20;

  explicit Router(CudaFunctions cuda, Clock clock = {},
                  std::int64_t sample_bytes = kSampleBytes,
                  std::int64_t chunk = StagedTransfer::kChunk);

  ~Router() = default;
  Router(const Router&) = delete;  // owns pinned buffers
  Router& operator=(const Router&) = delete;

  // What it was made with; for whoever else works on these devices.
  const CudaFunctions& cuda() const { return cuda_; }

  // How many CUDA devices this process sees. Internal when CUDA fails.
  absl::StatusOr<int> DeviceCount() const;

  // The fastest way from `source` to `target`; the host end means pageable
  // memory. Measured with less where there is no room for a sample. Naming
  // every way with its reason, when none works: ResourceExhausted if it is for
  // want of memory alone, else Internal. DeadlineExceeded for a copy that does
  // not end; the memory of the sample is kept then.
  absl::StatusOr<Choice> Choose(int source, int target);

  // Takes a way that was measured before (by `distorch links`) as chosen.
  // InvalidArgument for a way that cannot serve the pair.
  absl::Status Adopt(int source, int target, Way way, double gbps);

  // Copies by the chosen way and returns it; see transfer.h for the ordering
  // contract. Pinned host memory always goes directly, pageable memory of less
  // than one staging buffer too. A pair that there is no room to measure is
  // served all the same: by staging, which takes no memory of a device and
  // cannot deliver wrong bytes; directly where one end is the host.
  absl::StatusOr<Way> Copy(const CopyRequest& request);

  // The median of `repeats` copies of `bytes`; every byte that arrived is
  // compared, after a first copy and after the timed ones. Takes that much
  // memory at both ends meanwhile. `pages` counts only where one end is the
  // host.
  absl::StatusOr<double> Measure(int source, int target, Way way,
                                 HostPages pages, std::int64_t bytes,
                                 int repeats);

 private:
  // The way of a pair that was chosen before.
  std::optional<Way> Known(int source, int target);
  absl::StatusOr<Choice> MeasurePair(int source, int target);
  absl::StatusOr<double> MeasureInRoom(int source, int target, Way way);
  absl::StatusOr<double> Time(Transfer& transfer, const CopyRequest& request,
                              int repeats);
  Transfer* TransferFor(Way way);

  const CudaFunctions cuda_;
  const Clock clock_;
  const std::int64_t sample_bytes_;
  const std::int64_t chunk_;
  DirectTransfer direct_;
  PeerTransfer peer_;
  PeerTransfer driver_;
  StagedTransfer staged_;
  Mutex mutex_;
  std::map<std::pair<int, int>, Choice> choices_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace distorch

#endif  // DISTORCH_TRANSFER_ROUTER_H_
