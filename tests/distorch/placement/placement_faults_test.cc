// SPDX-License-Identifier: Apache-2.0
// A failure at every call of a table leaves everything as it was.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <random>
#include <vector>

#include "distorch/placement/placement.h"
#include "tests/distorch/placement/fake_table.h"

namespace distorch {
namespace {

using ::distorch::testing::FakeTable;
using ::distorch::testing::Fault;
using ::distorch::testing::kCpu;
using ::distorch::testing::kDonor;
using ::distorch::testing::kGpu;
using ::distorch::testing::SmallModel;

// Everything that can be asked of a placement.
struct Seen {
  std::vector<bool> spilled, patched, made;
  std::vector<Bytes> bytes;
  Transfers transfers;
  Bytes factors;
  bool operator==(const Seen&) const = default;
};

Seen Look(const Placement& placement, const SmallModel& model) {
  Seen seen;
  seen.bytes = placement.BytesPerDevice();
  seen.transfers = placement.transfers();
  seen.factors = placement.factor_bytes();
  for (uint32_t n = 0; n < model.blocks.size(); ++n) {
    seen.spilled.push_back(placement.spilled(n));
  }
  for (uint32_t i = 0; i < model.tensors.size(); ++i) {
    seen.patched.push_back(placement.patched(i));
    seen.made.push_back(placement.made(i));
  }
  return seen;
}

class World {
 public:
  World() {
    table.has_patches = {false, true, false, true, false, false, true, false};
    options.patched = table.has_patches;
  }
  void Place(std::vector<uint32_t> places) {
    ASSERT_TRUE(placement.Assign(std::move(places)).ok());
    ASSERT_TRUE(placement.Bring(table, options).ok());
  }

  SmallModel model;
  Placement placement = model.Make();
  FakeTable table{model.tensors};
  BringOptions options;
};

// Runs `step` with the k-th call failing, for every k, each time in a new world
// that `before` has set up. At least so many calls must have been there to
// fail.
void FailEverywhere(int at_least, const std::function<void(World&)>& before,
                    const std::function<void(World&)>& step,
                    const std::function<void(World&)>& check = nullptr) {
  for (int k = 0;; ++k) {
    World world;
    before(world);
    world.table.calls = 0;
    world.table.fail_at = k;
    const auto hung = world.table.Snapshot();
    const Seen seen = Look(world.placement, world.model);
    try {
      step(world);
      EXPECT_GE(k, at_least) << "faults";
      return;
    } catch (const Fault&) {
    }
    world.table.fail_at = -1;
    SCOPED_TRACE(::testing::Message() << "call " << k);
    EXPECT_TRUE(world.table.open_slabs.empty());
    if (check) {
      check(world);
    } else {
      EXPECT_EQ(world.table.Snapshot(), hung);
      EXPECT_EQ(Look(world.placement, world.model), seen);
    }
    // And it goes on from there.
    ASSERT_TRUE(world.placement.Bring(world.table, world.options).ok());
    EXPECT_TRUE(world.placement.Verify(world.table).ok());
    world.placement.Release(world.table);
    EXPECT_TRUE(world.table.made.empty());
  }
}

const std::vector<uint32_t> kPlaces = {kGpu, kDonor, kDonor, kCpu, kGpu, kGpu};

TEST(PlacementFaultsTest, Load) {
  FailEverywhere(
      18, [](World& w) { ASSERT_TRUE(w.placement.Assign(kPlaces).ok()); },
      [](World& w) { (void)w.placement.Bring(w.table, w.options); });
}

TEST(PlacementFaultsTest, ChangeOfPatches) {
  FailEverywhere(
      10,
      [](World& w) {
        w.Place(kPlaces);
        w.options.changed.assign(8, true);
      },
      [](World& w) { (void)w.placement.Bring(w.table, w.options); });
}

TEST(PlacementFaultsTest, GivingWayLeavesWhatWasFound) {
  FailEverywhere(
      10,
      [](World& w) {
        w.Place(kPlaces);
        w.options.changed.assign(8, true);
        w.options.give_way = true;
      },
      [](World& w) { (void)w.placement.Bring(w.table, w.options); },
      [](World& w) {
        for (uint32_t i = 0; i < 8; ++i) {
          EXPECT_EQ(w.placement.made(i), w.table.hanging(i) != kFound);
        }
      });
}

TEST(PlacementFaultsTest, Spill) {
  FailEverywhere(
      5, [](World& w) { w.Place(kPlaces); },
      [](World& w) { w.placement.Spill(w.table, kDonor, GiB(1)); });
}

TEST(PlacementFaultsTest, ReleaseGivesAllBackAndThenThrows) {
  FailEverywhere(
      5,
      [](World& w) {
        w.Place(kPlaces);
        for (uint32_t i = 0; i < 8; ++i) {
          w.table.Current(i).written = 1;
        }
      },
      [](World& w) { w.placement.Release(w.table); },
      [](World& w) {
        EXPECT_TRUE(w.table.made.empty());
        for (uint32_t i = 0; i < 8; ++i) {
          EXPECT_EQ(w.table.hanging(i), kFound);
        }
      });
}

// Random sequences of everything, with a failure now and then: the state that
// is told is the state that is read back, and nothing is lost or made twice.
TEST(PlacementFaultsTest, RandomSequences) {
  for (unsigned seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    const auto below = [&](uint32_t n) {
      return static_cast<uint32_t>(random() % n);
    };
    World w;
    w.Place({kGpu, below(3), below(3), below(3), below(3), kGpu});
    for (int step = 0; step < 6; ++step) {
      w.table.fail_at =
          below(3) == 0 ? w.table.calls + static_cast<int>(below(30)) : -1;
      w.options.give_way = below(2) == 0;
      w.options.changed.assign(8, false);
      for (uint32_t i = 1; i < 7; ++i) {
        if (below(3) != 0) continue;
        w.options.changed[i] = true;
        w.options.patched[i] = w.table.has_patches[i] = below(2) == 0;
      }
      try {
        switch (below(4)) {
          case 0:
            w.placement.Spill(w.table, 1 + below(2), Bytes(below(9000)));
            break;
          case 1:
            w.placement.Return(1 + below(4));
            break;
          case 2:
            w.placement.Fit(Bytes(below(20000)));
            break;
          default:
            break;
        }
        ASSERT_TRUE(w.placement.Bring(w.table, w.options).ok());
        ASSERT_TRUE(w.placement.Verify(w.table).ok());
      } catch (const Fault&) {
      }
      w.table.fail_at = -1;
      std::vector<Bytes> sums(3);
      for (uint32_t i = 0; i < 8; ++i) {
        EXPECT_EQ(w.placement.made(i), w.table.hanging(i) != kFound);
        if (w.model.tensors[i].same == i) {
          sums[w.table.Current(i).device] += w.model.tensors[i].bytes();
        }
      }
      EXPECT_EQ(w.placement.BytesPerDevice(), sums);
      EXPECT_TRUE(w.table.open_slabs.empty());
    }
    w.placement.Release(w.table);
    EXPECT_TRUE(w.table.made.empty());
  }
}

}  // namespace
}  // namespace distorch
