// SPDX-License-Identifier: Apache-2.0
// A compute device and a copy engine for each source under a virtual clock. The
// host queues work and never waits, as with real streams; all queues run in
// order.
// Checks that no slot is read before its copy or overwritten before its use.
#ifndef DISTORCH_TESTS_DISTORCH_EXECUTION_VIRTUAL_BACKEND_H_
#define DISTORCH_TESTS_DISTORCH_EXECUTION_VIRTUAL_BACKEND_H_

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "distorch/execution/stream_scheduler.h"

namespace distorch {

class VirtualBackend : public StreamBackend {
 public:
  // `sources`: by group, whose link its copy takes; all the same one if empty.
  VirtualBackend(std::vector<double> copy_seconds, int slots,
                 std::vector<int> sources = {})
      : copy_seconds_(std::move(copy_seconds)),
        sources_(std::move(sources)),
        slots_(static_cast<std::size_t>(slots)) {
    sources_.resize(copy_seconds_.size());
  }

  absl::Status StartCopy(int group, int slot) override {
    if (fail_copies > 0 && --fail_copies == 0) {
      return absl::InternalError("copy failed");
    }
    State& state = slots_[static_cast<std::size_t>(slot)];
    const auto index = static_cast<std::size_t>(group);
    double& link = link_free_[sources_[index]];
    // `ready`: of a copy into it that nobody awaited, from another source.
    const double begin = std::max({link, state.used_until, state.ready});
    if (begin < state.reading_until) {
      violations.emplace_back("overwritten early");
    }
    link = begin + copy_seconds_[index];
    state.group = group;
    state.ready = link;
    bytes_copied += 1;
    return absl::OkStatus();
  }
  absl::Status Await(int slot) override {
    now_ = std::max(now_, slots_[static_cast<std::size_t>(slot)].ready);
    return absl::OkStatus();
  }
  absl::Status MarkUsed(int slot) override {
    slots_[static_cast<std::size_t>(slot)].used_until = now_;
    return absl::OkStatus();
  }
  void Drain() override {
    for (const auto& [source, free] : link_free_) now_ = std::max(now_, free);
    for (State& state : slots_) state = State{};
    ++drains;
  }

  // Queues a computation that reads `group` from `slot`; slot -1 for a
  // resident group.
  void Compute(int group, int slot, double seconds) {
    if (slot >= 0) {
      State& state = slots_[static_cast<std::size_t>(slot)];
      if (state.group != group) violations.emplace_back("wrong group in slot");
      if (now_ < state.ready) violations.emplace_back("read before the copy");
      state.reading_until = now_ + seconds;
    }
    now_ += seconds;
  }

  double now() const { return now_; }

  int fail_copies = 0;  // the n-th copy from now on fails; 0: none
  int bytes_copied = 0;
  int drains = 0;
  std::vector<std::string> violations;

 private:
  struct State {
    int group = -1;
    double ready = 0;          // the copy into it is done
    double used_until = 0;     // marked: computes up to here read it
    double reading_until = 0;  // truly read until here
  };

  std::vector<double> copy_seconds_;
  std::vector<int> sources_;
  std::vector<State> slots_;
  std::map<int, double> link_free_;  // by source: when its copies are done
  double now_ = 0;                   // the compute stream
};

}  // namespace distorch

#endif  // DISTORCH_TESTS_DISTORCH_EXECUTION_VIRTUAL_BACKEND_H_
