// SPDX-License-Identifier: Apache-2.0
// NCCL in one process: one block to several devices at once, and an exchange
// between all pairs. The library (libnccl.so.2) is looked up at run time.
//
// NCCL reaches another device's memory directly, which memory of CUDA's
// stream-ordered allocator (cudaMallocAsync) does not allow: CheckAllocator
// refuses that combination before anything is started.
#ifndef DISTORCH_TRANSFER_NCCL_H_
#define DISTORCH_TRANSFER_NCCL_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "distorch/transfer/cuda_api.h"
#include "distorch/transfer/transfer.h"

namespace distorch {

// As in NVIDIA's NCCL API; each returns 0 or NCCL's error number.
struct NcclFunctions {
  using Comm = void*;
  static constexpr int kUint8 = 1;  // ncclUint8

  std::function<int(Comm*, int, const int*)> init_all;
  std::function<int(Comm)> destroy;
  std::function<int(Comm)> abort;
  std::function<int()> group_start;
  std::function<int()> group_end;
  std::function<int(const void*, void*, std::size_t, int, int, Comm, void*)>
      broadcast;
  std::function<int(const void*, std::size_t, int, int, Comm, void*)> send;
  std::function<int(void*, std::size_t, int, int, Comm, void*)> receive;
  std::function<const char*(int)> error_text;
  std::function<const char*(Comm)> last_error;  // may be empty
};

// Unavailable when the library or a function of it is not there. An empty path
// means libnccl.so.2, the one of torch where torch has loaded it.
absl::StatusOr<NcclFunctions> LoadNccl(const std::string& path = "");

// FailedPrecondition, with the remedy, when `configuration` (the value of
// PYTORCH_CUDA_ALLOC_CONF or PYTORCH_ALLOC_CONF) asks for cudaMallocAsync.
//   CheckAllocator("expandable_segments:True")          OK
//   CheckAllocator("backend: cudaMallocAsync")          FailedPrecondition
absl::Status CheckAllocator(std::string_view configuration);

// One end of a broadcast: memory on a device, and the stream of that device in
// whose order it happens.
struct NcclTarget {
  void* data = nullptr;
  StreamOn stream;
};

// One message of an exchange. The streams belong to its two devices.
struct NcclMessage {
  const void* source = nullptr;
  StreamOn source_stream;
  void* target = nullptr;
  StreamOn target_stream;
  std::int64_t bytes = 0;
};

// One communicator over a set of devices. Safe from several threads: calls are
// serialised, as NCCL demands.
//
// Ordering of both calls: on each device, after what is queued on the given
// stream and before what is queued there later; the host does not wait.
class NcclGroup {
 public:
  // REQUIRES: `cuda` outlives it. InvalidArgument for fewer than two devices or
  // one that is named twice; Internal when NCCL fails.
  static absl::StatusOr<std::unique_ptr<NcclGroup>> Open(
      NcclFunctions nccl, const CudaFunctions* cuda, std::vector<int> devices);

  NcclGroup(const NcclGroup&) = delete;  // owns the communicator
  NcclGroup& operator=(const NcclGroup&) = delete;
  ~NcclGroup();  // the streams used must be done, or be drained by then

  const std::vector<int>& devices() const { return devices_; }

  // Sends `bytes` at `source` to each target; every device of the group is
  // either the source's or a target's, once. After an error that NCCL reports
  // the group is unusable and every later call says so.
  absl::Status Broadcast(const void* source, StreamOn source_stream,
                         absl::Span<const NcclTarget> targets,
                         std::int64_t bytes);

  // All messages at once, as grouped sends and receives. A message within one
  // device is not sent here: InvalidArgument.
  absl::Status Exchange(absl::Span<const NcclMessage> messages);

 private:
  NcclGroup(NcclFunctions nccl, const CudaFunctions* cuda,
            std::vector<int> devices);

  absl::StatusOr<int> Rank(int device) const;
  absl::Status CheckTargets(StreamOn source_stream,
                            absl::Span<const NcclTarget> targets) const;
  absl::Status CheckMessages(absl::Span<const NcclMessage> messages) const;
  // Runs `calls` between group_start and group_end.
  absl::Status Grouped(std::string_view what, std::int64_t bytes,
                       const std::function<int()>& calls);
  absl::Status Failed(std::string_view what, std::int64_t bytes, int code);

  const NcclFunctions nccl_;
  const CudaFunctions& cuda_;
  const std::vector<int> devices_;
  std::vector<NcclFunctions::Comm> comms_;
  std::mutex mutex_;    // serialises calls; guards broken_
  std::string broken_;  // the error that ended this group
};

}  // namespace distorch

#endif  // DISTORCH_TRANSFER_NCCL_H_
