// SPDX-License-Identifier: Apache-2.0
// Streams the weights of layer groups on CUDA's entry points: the scheduler's
// backend for CUDA, and for HIP, which is the same API. It knows addresses,
// streams and events, no tensors; whoever has those makes one call before a
// group computes and one after it, and none comes back.
//
//   auto streamer = ByteStreamer::Make(options, std::move(groups), stream);
//   (*streamer)->BeginStep();
//   auto slot = (*streamer)->Enter(group, stream);  // queue its kernels on
//   (*streamer)->Leave(group, stream);              // `stream` in between
//
// Each source has a copy stream on the compute device, so that links add up,
// also for the parts of one group. Ordering is that of stream_scheduler.h, by
// events; the host waits for nothing but pageable memory that a thread has not
// yet handed to the device.
//   - A copy into a slot comes after all that read or wrote the slot before, on
//     whatever stream, also before the slot was given to the streamer.
//   - Weights do not change while they are placed: a copy waits for nothing
//     that their device computes. Make and Reset wait once for what wrote them.
//   - Nothing is allocated after Make: a forward pass may be recorded around
//   it.
//   - After Reset and after the destructor no copy is under way and nothing
//     reads a slot: slots and sources may be given back, in any order. Pinned
//     slabs are owned until then.
//
// Where the host waits for a copy that does not end in its patience
// (host_waits.h), that is told once, everything later is refused, and nothing
// that the copy may still read or write is given back: `owner` and the pinned
// slabs are abandoned.
//
// Copies are cut where registrations end, so that none crosses a border.
// One thread at a time. No call depends on the current device or changes it.
#ifndef DISTORCH_EXECUTION_BYTE_STREAMER_H_
#define DISTORCH_EXECUTION_BYTE_STREAMER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "distorch/execution/stream_scheduler.h"
#include "distorch/transfer/copy_thread.h"
#include "distorch/transfer/cuda_api.h"
#include "distorch/transfer/host_pinner.h"
#include "distorch/transfer/router.h"
#include "distorch/transfer/transfer.h"

namespace distorch {

// Bytes that lie together, on a device or the host, and go together into a
// slot.
struct BytePart {
  const void* source = nullptr;
  int source_device = kHost;
  std::int64_t at = 0;                       // where they begin in the slot
  std::int64_t bytes = 0;                    // > 0
  std::shared_ptr<const PinnedSlab> pinned;  // that holds them; null: pageable
};

struct ByteGroup {
  std::vector<BytePart> parts;
};

class ByteStreamer : private StreamBackend {
 public:
  struct Options {
    const CudaFunctions* cuda = nullptr;  // outlives the streamer
    Router* router = nullptr;  // likewise; for groups that lie on other devices
    int device = 0;            // the compute device
    std::vector<void*> slots;  // memory there, each for the largest group
    std::int64_t chunk = StagedTransfer::kChunk;  // for pageable memory
    // Of slots and sources; let go behind the last copy.
    std::shared_ptr<void> owner = nullptr;
  };

  // `compute`: the stream whose order the slots' memory belongs to so far (what
  // is queued there may still use it). InvalidArgument without a group, a slot
  // or a router that is needed; else CUDA's error.
  static absl::StatusOr<std::unique_ptr<ByteStreamer>> Make(
      Options options, std::vector<ByteGroup> groups, void* compute);

  ByteStreamer(const ByteStreamer&) = delete;  // owns streams and events
  ByteStreamer& operator=(const ByteStreamer&) = delete;
  ~ByteStreamer() override;  // waits

  // Ends the step before, whose order is the prediction for this one.
  void BeginStep() { scheduler_.BeginStep(); }

  // The slot that holds the group's weights for what is queued on `compute`
  // (a stream of the compute device; null: its default one) from now on. Errors
  // as StreamScheduler::Acquire; after one, Reset. DeadlineExceeded from a copy
  // on that did not end.
  absl::StatusOr<int> Enter(int group, void* compute);

  // What computes from the group is queued, on `compute`. It may be another
  // stream than at Enter; what was queued on that one is waited for there.
  absl::Status Leave(int group, void* compute);

  // Waits until nothing of this streamer is under way and forgets what the
  // slots hold: after an error in the middle of a step, or when the sources
  // have been written.
  void Reset();

  const StreamCounters& counters() const { return scheduler_.counters(); }
  std::vector<int> in_slots() const { return scheduler_.in_slots(); }
  const std::vector<int>& order() const { return scheduler_.order(); }
  std::int64_t bytes_copied() const { return bytes_copied_; }
  // Copies by which a group comes, after cutting.
  std::size_t copies(int group) const;
  // Why pageable memory is staged by the driver and not by us, or by no thread
  // of its own; usually empty.
  const std::string& trouble() const { return trouble_; }

 private:
  struct Part {
    const std::byte* source = nullptr;
    int source_device = kHost;
    std::int64_t at = 0;
    std::int64_t bytes = 0;
    bool pageable = false;
  };
  // What one copy stream brings of a group.
  struct Share {
    std::size_t stream = 0;
    std::vector<Part> parts;
  };
  struct Group {
    std::vector<Share> shares;
    bool pageable = false;  // in part: the thread queues all of it
    std::int64_t bytes = 0;
  };
  struct Slot {
    std::byte* data = nullptr;
    void* used = nullptr;              // event: all that reads it is done
    std::vector<void*> ready;          // event by stream: its copy is done
    std::vector<std::size_t> filling;  // streams of the last copy
    std::int64_t bytes = 0;            // of it
    bool awaited = true;  // the compute that waits for that copy comes before
                          // what `used` will stand for
    bool held = false;    // between Enter and Leave
    void* on = nullptr;   // compute stream that it was entered on
    std::shared_ptr<CopyThread::Job> pending;  // guards the rest while it runs
  };

  explicit ByteStreamer(const Options& options, int groups);
  absl::Status Prepare(std::vector<ByteGroup> groups, void* compute);
  absl::Status AddGroup(ByteGroup group);
  void Add(const BytePart& part, std::int64_t begin, std::int64_t end,
           bool pageable, Group* group);
  absl::StatusOr<std::size_t> StreamOf(int source_device);
  absl::Status MakeEvents(void* compute);

  absl::Status StartCopy(int group, int slot) override;
  absl::Status Await(int slot) override;
  absl::Status MarkUsed(int slot) override;
  void Drain() override;
  // Waits for what the sources' devices have been given to do.
  absl::Status SettleSources();

  absl::Status Fill(const Group& group, Slot& slot);
  absl::Status CopyPart(const Part& part, const Slot& slot, void* stream);
  absl::Status Record(void* event, void* stream);
  absl::Status Wait(void* stream, void* event);
  absl::Status Told(const char* call, std::int64_t bytes, int code);
  // Notes a copy that did not end; returns `status`.
  absl::Status Noted(absl::Status status);

  const CudaFunctions& cuda_;
  Router* const router_;
  const int device_;
  const std::int64_t chunk_;
  std::shared_ptr<void> owner_;
  absl::Status stalled_;  // the error of a copy that did not end
  CudaFunctions::Context context_ = nullptr;  // the compute device's
  std::vector<Slot> slots_;
  std::vector<Group> groups_;
  std::vector<std::shared_ptr<const PinnedSlab>> slabs_;
  std::vector<int> sources_;    // by stream: the device it copies from
  std::vector<void*> streams_;  // of the compute device
  std::unique_ptr<StagedTransfer> staged_;  // null: nothing is pageable
  // Likewise; or the system has none to give: whoever asks copies.
  std::unique_ptr<CopyThread> thread_;
  StreamScheduler scheduler_;
  void* compute_ = nullptr;  // of the call that is under way
  std::int64_t bytes_copied_ = 0;
  std::string trouble_;
};

}  // namespace distorch

#endif  // DISTORCH_EXECUTION_BYTE_STREAMER_H_
