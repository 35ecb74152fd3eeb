// SPDX-License-Identifier: Apache-2.0
// Random small cases against an exhaustive search, and random larger ones
// against the promises.
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "allocation/planner.h"
#include "tests/allocation/planner_testing.h"

namespace distorch {
namespace {

using testing::EqualBlocks;
using testing::MustPlan;
using testing::TwoGpusAndHost;

// Devices and blocks of a few bytes, so that caps are often just met. The
// string caps every device, cpu among them: what fits is a question of packing.
struct SmallCase {
  std::vector<Block> blocks;
  std::vector<Device> devices;
  Spec spec;
  std::vector<int64_t> caps;
  PlanOptions options;
};

class CaseMaker {
 public:
  explicit CaseMaker(uint32_t seed) : random_(seed) {}

  SmallCase Make() {
    SmallCase made;
    const int64_t devices = 1 + Below(4);
    EntryList list;
    for (int64_t d = 0; d < devices; ++d) {
      const DeviceId id = d == devices - 1
                              ? DeviceId("cpu")
                              : DeviceId("cuda", static_cast<int>(d));
      const int64_t cap = Below(13);
      const int64_t free = Below(4) == 0 ? Below(13) : 100;
      made.devices.push_back({id, Bytes(100), Bytes(free), Bytes(0), 0});
      made.caps.push_back(std::min(cap, free));
      list.entries.push_back({id, Bytes(cap)});
    }
    made.spec.form = std::move(list);
    made.options.order = static_cast<Order>(Below(3));
    const int64_t blocks = Below(9);
    for (int64_t b = 0; b < blocks; ++b) made.blocks.push_back(MakeBlock(b));
    return made;
  }

 private:
  int64_t Below(int64_t n) {
    return std::uniform_int_distribution<int64_t>(0, n - 1)(random_);
  }
  Block MakeBlock(int64_t index) {
    Block block;
    block.name = absl::StrCat("b", index);
    block.bytes = Bytes(Below(7));
    if (Below(2) == 0) block.cost = Below(5);
    if (Below(2) == 0) block.group = absl::StrCat("g", Below(3));
    if (Below(8) == 0) block.pinned = "head";
    if (Below(6) == 0) block.tied = absl::StrCat("t", Below(2));
    return block;
  }

  std::mt19937 random_;
};

// Tries every placement.
class BruteForce {
 public:
  explicit BruteForce(const SmallCase& small)
      : blocks_(small.blocks), left_(small.caps) {}

  bool Feasible() { return Place(0); }

 private:
  bool Place(size_t index) {
    if (index == blocks_.size()) return true;
    const Block& block = blocks_[index];
    for (size_t d = 0; d < left_.size(); ++d) {
      if (!block.pinned.empty() && d != 0) continue;
      const auto tied = device_of_.find(block.tied);
      if (tied != device_of_.end() && tied->second != d) continue;
      if (left_[d] < block.bytes.value()) continue;
      const bool is_first = !block.tied.empty() && tied == device_of_.end();
      if (is_first) device_of_[block.tied] = d;
      left_[d] -= block.bytes.value();
      if (Place(index + 1)) return true;
      left_[d] += block.bytes.value();
      if (is_first) device_of_.erase(block.tied);
    }
    return false;
  }

  const std::vector<Block>& blocks_;
  std::vector<int64_t> left_;
  std::map<std::string, size_t> device_of_;
};

TEST(PlannerPropertyTest, FindsAPlanExactlyWhereOneExists) {
  constexpr int kCases = 120'000;
  CaseMaker maker(1066);
  int feasible = 0;
  for (int i = 0; i < kCases; ++i) {
    const SmallCase small = maker.Make();
    const DeviceId compute = small.devices[0].id;
    PlanFailure failure;
    const absl::StatusOr<Plan> plan =
        MakePlan(small.spec, small.blocks, small.devices, compute,
                 small.options, &failure);
    const bool exists = BruteForce(small).Feasible();
    ASSERT_EQ(plan.ok(), exists) << "case " << i << ": " << plan.status();
    if (!plan.ok()) {
      ASSERT_EQ(plan.status().code(), absl::StatusCode::kResourceExhausted);
      ASSERT_EQ(failure.candidates.size(), small.devices.size());
      ASSERT_FALSE(failure.remedy.empty());
      continue;
    }
    ++feasible;
    const absl::Status kept = CheckInvariants(*plan, small.blocks);
    ASSERT_TRUE(kept.ok()) << "case " << i << ": " << kept;
    for (size_t d = 0; d < small.caps.size(); ++d) {
      ASSERT_LE(plan->devices[d].used.value(), small.caps[d]) << "case " << i;
    }
  }
  // Both outcomes must be common for this to say something.
  EXPECT_GT(feasible, kCases / 5);
  EXPECT_LT(feasible, kCases * 4 / 5);
}

// With a rest device every set of caps is feasible; equal blocks then fill each
// cap up to the last whole block, in every order.
TEST(PlannerPropertyTest, EqualBlocksFillRandomCaps) {
  std::mt19937 random(1492);
  const auto below = [&random](int n) {
    return std::uniform_int_distribution<int>(0, n - 1)(random);
  };
  for (int i = 0; i < 20'000; ++i) {
    const int count = 1 + below(60);
    const int per_group = below(6);
    const auto blocks = EqualBlocks(count, MiB(10), per_group);
    const int a = below(300);
    const int b = below(300);
    const std::string text =
        absl::StrCat("cuda:0,", a, "mb;cuda:1,", b, "mb;cpu,*");
    const PlanOptions options = {static_cast<Order>(below(3)), false};
    const Plan plan =
        MustPlan(text, blocks, TwoGpusAndHost(), "cuda:0", options);
    const int on_a = std::min(a / 10, count);
    const int on_b = std::min(b / 10, count - on_a);
    ASSERT_EQ(plan.devices[0].blocks, static_cast<uint32_t>(on_a)) << text;
    ASSERT_EQ(plan.devices[1].blocks, static_cast<uint32_t>(on_b)) << text;
  }
}

// What is streamed of the group of which it is the most, and how many groups.
std::pair<Bytes, uint32_t> Streamed(const Plan& plan,
                                    const std::vector<Block>& blocks) {
  std::map<std::string, Bytes> by_group;
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (plan.DeviceOf(i) == plan.compute) continue;
    by_group[blocks[i].group] += blocks[i].bytes;
  }
  Bytes most;
  for (const auto& [group, bytes] : by_group) most = std::max(most, bytes);
  return {most, static_cast<uint32_t>(by_group.size())};
}

TEST(PlannerPropertyTest, SlotsHoldWhatIsStreamedWithinTheCap) {
  std::mt19937 random(1914);
  const auto below = [&](int n) {
    return std::uniform_int_distribution<int>(0, n - 1)(random);
  };
  int within = 0;
  for (int i = 0; i < 5'000; ++i) {
    auto blocks = EqualBlocks(1 + below(40), MiB(10), 1 + below(5));
    for (Block& block : blocks) block.bytes = MiB(1 + below(12));
    if (below(4) == 0) blocks[0].pinned = "head";
    const std::string text = absl::StrCat("cuda:0,", 12 + below(400),
                                          "mb;cuda:1,", below(200), "mb;cpu,*");
    const PlanOptions options = {static_cast<Order>(below(3)), false,
                                 static_cast<uint32_t>(below(5))};
    const Plan plan =
        MustPlan(text, blocks, TwoGpusAndHost(), "cuda:0", options);
    const auto [most, groups] = Streamed(plan, blocks);
    ASSERT_LE(plan.slots, std::min(options.slots, groups)) << text;
    ASSERT_EQ(plan.slots > 0, options.slots > 0 && groups > 0) << text;
    if (plan.slots == 0) continue;
    ASSERT_GE(plan.slot_bytes, most) << text;
    ASSERT_LE(plan.slot_bytes, most + KiB(64)) << text;
    if (plan.slots_exceed_cap) continue;
    ++within;
    const DeviceShare& compute = plan.devices[0];
    ASSERT_LE(compute.used + compute.slots, compute.cap) << text;
  }
  EXPECT_GT(within, 1'000);
}

TEST(PlannerPropertyTest, TheSameArgumentsGiveTheSamePlan) {
  CaseMaker maker(1789);
  for (int i = 0; i < 2'000; ++i) {
    const SmallCase small = maker.Make();
    const auto plan = [&] {
      return MakePlan(small.spec, small.blocks, small.devices,
                      small.devices[0].id, small.options);
    };
    const auto first = plan();
    const auto second = plan();
    ASSERT_EQ(first.status(), second.status());
    if (!first.ok()) continue;
    ASSERT_EQ(first->placement, second->placement);
  }
}

}  // namespace
}  // namespace distorch
