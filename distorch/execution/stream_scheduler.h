// SPDX-License-Identifier: Apache-2.0
// Decides which layer group is copied into which staging slot, and when: the
// streaming of weights from donors to the compute device. Knows nothing of
// tensors, devices or clocks; those are behind `StreamBackend`.
//
//   StreamScheduler scheduler(backend, groups, /*slots=*/2);
//   scheduler.BeginStep();
//   auto slot = scheduler.Acquire(group);   // before the group computes
//   ...                                      // its weights are in *slot
//   scheduler.Release(group);                // after its last kernel is queued
//
// The order of the first step is learned; from then on the next groups are
// copied ahead, over the end of a step into the next one. A group that comes
// out of order is copied on demand, and the new order is learned. A group may
// come several times in a step: the slot that is overwritten is always that of
// the group whose next use is the farthest.
//
// Ordering contract, by which a backend must implement its calls:
//   StartCopy   runs after the compute that Released the slot last, before any
//               compute that Awaits it; the host does not wait.
//   Await       the compute queued next runs after the copy; the host does not
//               wait.
//   MarkUsed    the next copy into the slot runs after the compute queued so
//               far; the host does not wait.
//
// One thread at a time. After an exception in the model or a failed call, Reset
// brings everything into the state of a new scheduler, but for the order.
#ifndef DISTORCH_EXECUTION_STREAM_SCHEDULER_H_
#define DISTORCH_EXECUTION_STREAM_SCHEDULER_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace distorch {

class StreamBackend {
 public:
  virtual ~StreamBackend() = default;
  // Queues the copy of all weights of `group` into `slot`.
  virtual absl::Status StartCopy(int group, int slot) = 0;
  // Orders the compute queued next behind the last copy into `slot`.
  virtual absl::Status Await(int slot) = 0;
  // Remembers the compute queued so far as the last that reads `slot`.
  virtual absl::Status MarkUsed(int slot) = 0;
  // Waits until nothing of this scheduler's copies and computes is under way.
  virtual void Drain() = 0;
};

// Counts since construction.
struct StreamCounters {
  std::int64_t copies = 0;     // started
  std::int64_t ahead = 0;      // of them, before they were asked for
  std::int64_t on_demand = 0;  // of them, when they were asked for
  std::int64_t wasted = 0;     // copied ahead and overwritten unread
};

class StreamScheduler {
 public:
  // `backend` must outlive the scheduler. Groups are 0 .. groups-1; at least
  // one of them and one slot.
  StreamScheduler(StreamBackend* backend, int groups, int slots);

  ~StreamScheduler() = default;
  StreamScheduler(const StreamScheduler&) = delete;  // one user of the slots
  StreamScheduler& operator=(const StreamScheduler&) = delete;

  // Ends the step before, whose order is the prediction for this one.
  void BeginStep();

  // The slot that holds `group`'s weights for the compute queued next.
  // InvalidArgument when there is no such group, FailedPrecondition when it is
  // held already, ResourceExhausted when every slot is held; errors of the
  // backend pass through. After an error the group is not held by this call.
  absl::StatusOr<int> Acquire(int group);

  // The compute that reads `group` is queued: its slot may be overwritten
  // behind it. Starts the next copies ahead; that one of them fails is no
  // error, it is tried again with the next ones, at the latest when the group
  // is asked for.
  absl::Status Release(int group);

  // Forgets what the slots hold, after an error in the middle of a step.
  void Reset();

  const StreamCounters& counters() const { return counters_; }
  // Groups whose weights a slot holds, or will once they are copied.
  std::vector<int> in_slots() const;
  // Groups in the order in which they are expected; empty while learning.
  const std::vector<int>& order() const { return order_; }

 private:
  struct Slot {
    int group = -1;     // -1: nothing
    bool held = false;  // between Acquire and Release
    bool read = false;  // Acquired since it was copied
  };

  int Find(int group) const;
  int ChooseSlot() const;
  int Distance(int group) const;
  absl::Status Copy(int group, int slot);
  void Advance(int group);
  void CopyAhead();

  StreamBackend* backend_;
  std::vector<Slot> slots_;
  std::vector<int> order_;                // of the last complete step
  std::vector<int> recorded_;             // of this step
  std::vector<std::vector<int>> places_;  // of each group in order_, rising
  std::size_t cursor_ = 0;  // where in order_ the next group is expected
  StreamCounters counters_;
};

}  // namespace distorch

#endif  // DISTORCH_EXECUTION_STREAM_SCHEDULER_H_
