// SPDX-License-Identifier: Apache-2.0
// The scheduler against a slow and obvious one: the same calls of the backend
// in the same order, the same counters, for steps that come as expected and
// for those that do not.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "distorch/execution/stream_scheduler.h"

namespace distorch {
namespace {

class Recorder : public StreamBackend {
 public:
  absl::Status StartCopy(int group, int slot) override {
    calls.push_back(absl::StrCat("copy ", group, " into ", slot));
    return absl::OkStatus();
  }
  absl::Status Await(int slot) override {
    calls.push_back(absl::StrCat("await ", slot));
    return absl::OkStatus();
  }
  absl::Status MarkUsed(int slot) override {
    calls.push_back(absl::StrCat("used ", slot));
    return absl::OkStatus();
  }
  void Drain() override { calls.emplace_back("drain"); }

  std::vector<std::string> calls;
};

class SlowScheduler {
 public:
  explicit SlowScheduler(int slots) : slots_(static_cast<std::size_t>(slots)) {}

  void BeginStep() {
    if (recorded_.empty()) return;
    order_ = std::move(recorded_);
    recorded_.clear();
    next_ = 0;
  }
  // False when every slot is held.
  bool Acquire(int group) {
    int slot = Find(group);
    if (slot < 0) {
      slot = Choose();
      if (slot < 0) return false;
      Copy(group, slot);
      ++counters.on_demand;
    }
    calls.push_back(absl::StrCat("await ", slot));
    At(slot).held = At(slot).read = true;
    recorded_.push_back(group);
    const std::size_t away = Away(group);
    if (away < order_.size()) next_ = (next_ + away + 1) % order_.size();
    CopyAhead();
    return true;
  }
  void Release(int group) {
    const int slot = Find(group);
    At(slot).held = false;
    calls.push_back(absl::StrCat("used ", slot));
    CopyAhead();
  }
  void Reset() {
    calls.emplace_back("drain");
    slots_.assign(slots_.size(), {});
    recorded_.clear();
    next_ = 0;
  }

  std::vector<std::string> calls;
  StreamCounters counters;

 private:
  struct Slot {
    int group = -1;
    bool held = false;
    bool read = false;
  };

  Slot& At(int slot) { return slots_[static_cast<std::size_t>(slot)]; }
  int Find(int group) {
    for (std::size_t s = 0; s < slots_.size(); ++s) {
      if (slots_[s].group == group) return static_cast<int>(s);
    }
    return -1;
  }
  // How many groups come before this one; as many as there are: it does not.
  std::size_t Away(int group) const {
    for (std::size_t d = 0; d < order_.size(); ++d) {
      if (order_[(next_ + d) % order_.size()] == group) return d;
    }
    return order_.size();
  }
  int Choose() {
    int best = -1;
    for (std::size_t s = 0; s < slots_.size(); ++s) {
      if (slots_[s].held) continue;
      if (slots_[s].group < 0) return Empty();
      if (best < 0 || Away(slots_[s].group) > Away(At(best).group)) {
        best = static_cast<int>(s);
      }
    }
    return best;
  }
  int Empty() { return Find(-1); }
  void Copy(int group, int slot) {
    if (At(slot).group >= 0 && !At(slot).read) ++counters.wasted;
    calls.push_back(absl::StrCat("copy ", group, " into ", slot));
    ++counters.copies;
    At(slot) = {.group = group};
  }
  void CopyAhead() {
    for (std::size_t a = 0; a < order_.size() && a < slots_.size(); ++a) {
      const int group = order_[(next_ + a) % order_.size()];
      if (Find(group) >= 0) continue;
      const int slot = Choose();
      if (slot < 0) return;
      const int present = At(slot).group;
      if (present >= 0 && Away(present) <= a) return;
      Copy(group, slot);
      ++counters.ahead;
    }
  }

  std::vector<Slot> slots_;
  std::vector<int> order_;
  std::vector<int> recorded_;
  std::size_t next_ = 0;  // of order_, that is expected
};

TEST(StreamSchedulerModelTest, DoesWhatASlowAndObviousOneDoes) {
  for (std::uint32_t seed = 0; seed < 300; ++seed) {
    std::mt19937 random(seed);
    const auto draw = [&](int below) {
      return static_cast<int>(random() % static_cast<unsigned>(below));
    };
    const int groups = 1 + draw(7);
    const int slots = 1 + draw(4);
    Recorder backend;
    StreamScheduler scheduler(&backend, groups, slots);
    SlowScheduler slow(slots);
    std::vector<int> held;
    const auto release = [&](std::size_t which) {
      EXPECT_TRUE(scheduler.Release(held[which]).ok());
      slow.Release(held[which]);
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(which));
    };
    for (int step = 0; step < 8; ++step) {
      scheduler.BeginStep();
      slow.BeginStep();
      for (int g = 0; g < groups; ++g) {
        // Mostly in order; some are left out, some come from elsewhere.
        if (draw(6) == 0) continue;
        const int group = draw(5) == 0 ? draw(groups) : g;
        if (std::find(held.begin(), held.end(), group) != held.end()) continue;
        const bool ours = scheduler.Acquire(group).ok();
        ASSERT_EQ(ours, slow.Acquire(group)) << "seed " << seed;
        if (ours) held.push_back(group);
        while (!held.empty() && draw(4) != 0) {
          release(
              static_cast<std::size_t>(draw(static_cast<int>(held.size()))));
        }
      }
      while (!held.empty()) release(0);
      if (draw(5) == 0) {
        scheduler.Reset();
        slow.Reset();
      }
    }
    ASSERT_EQ(backend.calls, slow.calls) << "seed " << seed;
    const StreamCounters& counted = scheduler.counters();
    EXPECT_EQ(counted.copies, slow.counters.copies) << seed;
    EXPECT_EQ(counted.ahead, slow.counters.ahead) << seed;
    EXPECT_EQ(counted.on_demand, slow.counters.on_demand) << seed;
    EXPECT_EQ(counted.wasted, slow.counters.wasted) << seed;
  }
}

}  // namespace
}  // namespace distorch
