// SPDX-License-Identifier: Apache-2.0
// What the first steps teach of a model's layer groups: the order in which they
// come, how long each computes, how many bytes of activations go in and come
// out, and which are come back to within a step.
//
//   StepProfile profile(&cuda);
//   profile.BeginStep();             // the first step warms up
//   profile.BeginStep();             // this one is measured, and the next
//   profile.Enter("layers.0", {.input_bytes = 4096, .on = {0, stream}});
//   ...                              // its kernels are queued
//   profile.Leave("layers.0", 4096);
//
// Seconds are those of the stream that the group's work is queued on, by CUDA's
// events, so that waiting for a copy on another stream does not count; work on
// any other device is timed by the host's clock. One thread at a time.
#ifndef DISTORCH_EXECUTION_STEP_PROFILE_H_
#define DISTORCH_EXECUTION_STEP_PROFILE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "distorch/transfer/cuda_api.h"
#include "distorch/transfer/transfer.h"

namespace distorch {

struct GroupProfile {
  std::string name;
  double seconds = 0;  // of a call: the mean of those that were measured
  // Of all tensors that went in and came out at the last call.
  std::int64_t input_bytes = 0;
  std::int64_t output_bytes = 0;
  int calls = 0;  // measured
  // Calls but those that came straight after another of its own, for which the
  // weights are there already.
  int visits = 0;
  // It computed on a donor: its seconds compare with those of no other group.
  bool elsewhere = false;
};

class StepProfile {
 public:
  // Steps that are measured, counted from 1.
  static constexpr int kFirst = 2;
  static constexpr int kLast = 3;
  // Seconds since any fixed time.
  using Clock = std::function<double()>;

  // `cuda` outlives the profile; null: all is timed by the host's clock.
  // `clock` is the system's where it is not given.
  explicit StepProfile(const CudaFunctions* cuda = nullptr, Clock clock = {});
  StepProfile(const StepProfile&) = delete;  // owns events
  StepProfile& operator=(const StepProfile&) = delete;
  ~StepProfile();

  // A step begins. After the last measured one it waits for what was measured,
  // and the profile is complete, unless no group has come at all. Internal
  // where CUDA cannot tell the time; what was measured is then forgotten.
  absl::Status BeginStep();

  // The step was cut off: measuring begins again with the next one.
  void Forget();

  struct Call {
    std::int64_t input_bytes = 0;
    StreamOn on;  // where its work is queued; kHost: no stream of CUDA's
    bool elsewhere = false;
  };
  // A group begins; only while `active`. CUDA's error.
  absl::Status Enter(std::string_view name, const Call& call);
  // It has queued its work. Does nothing for one that was not entered.
  absl::Status Leave(std::string_view name, std::int64_t output_bytes);

  bool active() const { return active_; }      // this step is measured
  bool complete() const { return complete_; }  // all of them were
  // In the order of their first calls.
  absl::Span<const GroupProfile> groups() const { return groups_; }

  // Seconds of all groups in one step; 0 until the profile is complete.
  double step_seconds() const;
  // Seconds of each group in one step, but of those elsewhere; empty until the
  // profile is complete.
  std::vector<std::pair<std::string, double>> GroupSeconds() const;
  // Groups that a step comes back to, with others in between; empty until the
  // profile is complete.
  std::vector<std::string> Often() const;

  // Bytes of activations that cross in a step if another device runs the groups
  // of these names: into each run of groups that follow each other, and out of
  // it. Within a run they are handed over. Inputs that all groups share are
  // counted once a run, which is more than is sent.
  std::int64_t CrossingBytes(
      const absl::flat_hash_set<std::string>& names) const;

 private:
  // A point in the work of a stream, or of the host.
  struct Mark {
    double seconds = 0;
    void* event = nullptr;
  };
  struct Interval {
    std::size_t group = 0;
    StreamOn on;
    Mark begin;
    Mark end;
  };

  absl::Status Now(const StreamOn& on, Mark* mark) const;
  absl::Status Collect();
  absl::Status SecondsOf(const Interval& interval, double* seconds) const;
  void Destroy(Interval& interval) const;
  void DropIntervals();

  const CudaFunctions* const cuda_;
  const Clock clock_;
  int step_ = 0;
  bool active_ = false;
  bool complete_ = false;
  std::vector<GroupProfile> groups_;
  std::map<std::string, std::size_t, std::less<>> index_;  // by name
  std::size_t last_ = 0;  // group that was entered last; groups_.size(): none
  std::map<std::size_t, Interval> open_;  // by group
  std::vector<Interval> closed_;
};

}  // namespace distorch

#endif  // DISTORCH_EXECUTION_STEP_PROFILE_H_
