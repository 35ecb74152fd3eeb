// SPDX-License-Identifier: Apache-2.0
#include "distorch/execution/stream_scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "allocation/cost_model.h"
#include "tests/distorch/execution/virtual_backend.h"

namespace distorch {
namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

struct Machine {
  int groups;
  int slots;
  double compute;  // seconds a group
  std::set<int> streamed;
  VirtualBackend backend;
  StreamScheduler scheduler;

  Machine(int n, int s, double c, double tau, std::set<int> offloaded,
          std::vector<int> sources = {})
      : groups(n),
        slots(s),
        compute(c),
        streamed(std::move(offloaded)),
        backend(std::vector<double>(static_cast<std::size_t>(n), tau), s,
                std::move(sources)),
        scheduler(&backend, n, s) {}

  // Runs the groups of one step; returns its seconds.
  double Step(const std::vector<int>& order) {
    const double begin = backend.now();
    scheduler.BeginStep();
    for (const int group : order) {
      if (streamed.count(group) == 0) {
        backend.Compute(group, -1, compute);
        continue;
      }
      const auto slot = scheduler.Acquire(group);
      EXPECT_TRUE(slot.ok()) << slot.status();
      backend.Compute(group, *slot, compute);
      EXPECT_TRUE(scheduler.Release(group).ok());
    }
    return backend.now() - begin;
  }
  std::vector<int> All() const {
    std::vector<int> order(static_cast<std::size_t>(groups));
    for (int i = 0; i < groups; ++i) order[static_cast<std::size_t>(i)] = i;
    return order;
  }
};

std::set<int> Offloaded(int groups, int count, bool strided) {
  std::set<int> chosen;
  for (int i = 0; i < count; ++i) {
    chosen.insert(strided ? static_cast<int>(std::lround(
                                static_cast<double>(i) * groups / count)) %
                                groups
                          : groups - count + i);
  }
  return chosen;
}

struct TableCase {
  double rho;
  double share;
  int slots;
  bool strided;
};

class SteadyStateTest : public testing::TestWithParam<TableCase> {};

// The table of docs/execution.md, by the cost model's formulas.
TEST_P(SteadyStateTest, StepTimeEqualsTheModelWithinOnePercent) {
  const TableCase& c = GetParam();
  constexpr int kGroups = 40;
  const int count = static_cast<int>(kGroups * c.share);
  Machine machine(kGroups, c.slots, 1.0, c.rho,
                  Offloaded(kGroups, count, c.strided));
  double step = 0;
  for (int i = 0; i < 8; ++i) step = machine.Step(machine.All());
  StepModel model;
  model.compute_seconds = kGroups;
  model.groups = kGroups;
  model.slots = c.slots;
  model.pattern = c.strided ? StreamPattern::kStrided : StreamPattern::kTail;
  const StreamSource source{c.rho * count, 1.0, count};
  const double expected = PredictStep(model, {source});
  EXPECT_NEAR(step, expected, expected * 0.01);
  EXPECT_GE(step * 1.000001, std::max<double>(kGroups, source.bytes))
      << "no schedule is faster";
  EXPECT_THAT(machine.backend.violations, IsEmpty());
}

std::vector<TableCase> Table() {
  std::vector<TableCase> cases;
  for (const double rho : {0.5, 1.0, 2.0, 4.0, 8.0}) {
    for (const double share : {0.25, 0.5, 1.0}) {
      for (const int slots : {1, 2, 3, 8}) {
        for (const bool strided : {false, true}) {
          cases.push_back({rho, share, slots, strided});
        }
      }
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(
    Table, SteadyStateTest, testing::ValuesIn(Table()), [](const auto& test) {
      return "Rho" + std::to_string(static_cast<int>(test.param.rho * 10)) +
             "Share" +
             std::to_string(static_cast<int>(test.param.share * 100)) +
             "Slots" + std::to_string(test.param.slots) +
             (test.param.strided ? "Strided" : "Tail");
    });

TEST(StreamSchedulerTest, TwoSlotsReachTheBoundWhereTheTailDoesNot) {
  Machine strided(40, 2, 1.0, 2.0, Offloaded(40, 20, true));
  Machine tail(40, 2, 1.0, 2.0, Offloaded(40, 20, false));
  double a = 0;
  double b = 0;
  for (int i = 0; i < 6; ++i) {
    a = strided.Step(strided.All());
    b = tail.Step(tail.All());
  }
  EXPECT_NEAR(a / 40, 1.00, 0.01);
  EXPECT_NEAR(b / 40, 1.45, 0.015);
}

struct SourcesCase {
  int sources;
  double rho;
  double share;
};

class SourcesTest : public testing::TestWithParam<SourcesCase> {};

// Links of their own add up where there is one slot more than sources: while
// one group computes, every link copies into a slot.
TEST_P(SourcesTest, OneSlotMoreThanSourcesReachesTheBoundOfAllLinks) {
  const SourcesCase& c = GetParam();
  constexpr int kGroups = 48;
  const int count = static_cast<int>(kGroups * c.share);
  const std::set<int> offloaded = Offloaded(kGroups, count, true);
  std::vector<int> source_of(kGroups, 0);
  std::vector<StreamSource> sources(static_cast<std::size_t>(c.sources),
                                    {0, 1.0, 0});
  int turn = 0;
  for (const int group : offloaded) {
    const int source = turn++ % c.sources;
    source_of[static_cast<std::size_t>(group)] = source;
    sources[static_cast<std::size_t>(source)].bytes += c.rho;
    sources[static_cast<std::size_t>(source)].groups += 1;
  }
  Machine machine(kGroups, c.sources + 1, 1.0, c.rho, offloaded, source_of);
  double step = 0;
  for (int i = 0; i < 8; ++i) step = machine.Step(machine.All());
  StepModel model;
  model.compute_seconds = kGroups;
  model.groups = kGroups;
  model.slots = c.sources + 1;
  double bound = kGroups;  // no schedule is faster
  for (const StreamSource& source : sources) {
    bound = std::max(bound, source.bytes / source.bytes_per_second);
  }
  EXPECT_NEAR(step, bound, bound * 0.01);
  EXPECT_NEAR(step, PredictStep(model, sources), bound * 0.01);
  EXPECT_THAT(machine.backend.violations, IsEmpty());
}

std::vector<SourcesCase> SourcesTable() {
  std::vector<SourcesCase> cases;
  for (const int sources : {2, 3, 4}) {
    for (const double rho : {1.0, 2.0, 4.0, 8.0}) {
      for (const double share : {0.25, 0.5, 1.0}) {
        cases.push_back({sources, rho, share});
      }
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(
    Table, SourcesTest, testing::ValuesIn(SourcesTable()),
    [](const auto& test) {
      return "Sources" + std::to_string(test.param.sources) + "Rho" +
             std::to_string(static_cast<int>(test.param.rho)) + "Share" +
             std::to_string(static_cast<int>(test.param.share * 100));
    });

TEST(StreamSchedulerTest, LearnsTheOrderAndCopiesAheadOverTheEndOfAStep) {
  Machine machine(4, 2, 1.0, 0.5, {0, 1, 2, 3});
  machine.Step(machine.All());
  EXPECT_EQ(machine.scheduler.counters().on_demand, 4);
  EXPECT_EQ(machine.scheduler.counters().ahead, 0);
  machine.Step(machine.All());
  machine.Step(machine.All());
  EXPECT_THAT(machine.scheduler.order(), ElementsAre(0, 1, 2, 3));
  const StreamCounters& counters = machine.scheduler.counters();
  EXPECT_EQ(counters.on_demand, 5) << "only the first group of the second step";
  EXPECT_EQ(counters.wasted, 0);
}

TEST(StreamSchedulerTest, EachStreamedGroupIsCopiedOnceAStep) {
  Machine machine(12, 2, 1.0, 3.0, Offloaded(12, 6, true));
  machine.Step(machine.All());
  machine.Step(machine.All());
  const int before = machine.backend.bytes_copied;
  for (int i = 0; i < 10; ++i) machine.Step(machine.All());
  EXPECT_EQ(machine.backend.bytes_copied - before, 60);
}

TEST(StreamSchedulerTest, GroupsThatAllFitAreCopiedOnceForGood) {
  Machine machine(3, 3, 1.0, 3.0, {0, 1, 2});
  for (int i = 0; i < 5; ++i) machine.Step(machine.All());
  EXPECT_EQ(machine.backend.bytes_copied, 3);
}

TEST(StreamSchedulerTest, AGroupThatComesAgainAtOnceIsThereAlready) {
  Machine machine(4, 2, 1.0, 0.5, {0, 1, 2, 3});
  const std::vector<int> order = {0, 1, 1, 1, 2, 3, 3};
  for (int i = 0; i < 3; ++i) machine.Step(order);
  const int before = machine.backend.bytes_copied;
  for (int i = 0; i < 10; ++i) machine.Step(order);
  EXPECT_EQ(machine.backend.bytes_copied - before, 40);
  EXPECT_EQ(machine.scheduler.counters().wasted, 0);
  EXPECT_THAT(machine.scheduler.order(), ElementsAreArray(order));
  EXPECT_THAT(machine.backend.violations, IsEmpty());
}

TEST(StreamSchedulerTest, AGroupThatIsComeBackToStaysUntilItsLastUse) {
  Machine machine(6, 2, 1.0, 0.5, {0, 1, 2, 3, 4, 5});
  const std::vector<int> order = {0, 5, 1, 5, 2, 5, 3, 4};
  for (int i = 0; i < 3; ++i) machine.Step(order);
  const StreamCounters before = machine.scheduler.counters();
  for (int i = 0; i < 10; ++i) machine.Step(order);
  const StreamCounters& after = machine.scheduler.counters();
  EXPECT_EQ(after.copies - before.copies, 60) << "each group once a step";
  EXPECT_EQ(after.on_demand, before.on_demand);
  EXPECT_EQ(after.wasted, 0);
  EXPECT_THAT(machine.scheduler.order(), ElementsAreArray(order));
  EXPECT_THAT(machine.backend.violations, IsEmpty());
}

TEST(StreamSchedulerTest, AChangedOrderIsServedOnDemandAndLearned) {
  Machine machine(6, 2, 1.0, 0.5, {0, 1, 2, 3, 4, 5});
  const std::vector<int> other = {5, 3, 1, 0, 2, 4};
  for (int i = 0; i < 3; ++i) machine.Step(machine.All());
  machine.Step(other);
  machine.Step(other);
  const auto before = machine.scheduler.counters().on_demand;
  machine.Step(other);
  machine.Step(other);
  EXPECT_EQ(machine.scheduler.counters().on_demand, before);
  EXPECT_THAT(machine.scheduler.order(), ElementsAre(5, 3, 1, 0, 2, 4));
  EXPECT_THAT(machine.backend.violations, IsEmpty());
}

TEST(StreamSchedulerTest, SkippedGroupsDoNotStopTheStream) {
  Machine machine(6, 2, 1.0, 0.5, {0, 1, 2, 3, 4, 5});
  for (int i = 0; i < 3; ++i) machine.Step(machine.All());
  machine.Step({0, 1, 4, 5});
  machine.Step(machine.All());
  EXPECT_THAT(machine.backend.violations, IsEmpty());
}

TEST(StreamSchedulerTest, AFailedCopyAheadIsTriedAgain) {
  Machine machine(4, 2, 1.0, 0.5, {0, 1, 2, 3});
  machine.Step(machine.All());
  machine.Step(machine.All());
  const int before = machine.backend.bytes_copied;
  machine.backend.fail_copies = 2;
  machine.Step(machine.All());
  machine.Step(machine.All());
  EXPECT_EQ(machine.backend.fail_copies, 0) << "it did fail";
  EXPECT_EQ(machine.backend.bytes_copied - before, 8) << "each once a step";
  EXPECT_THAT(machine.backend.violations, IsEmpty());
}

TEST(StreamSchedulerTest, AFailedCopyOnDemandIsAnErrorAndLeavesNothingHeld) {
  Machine machine(2, 1, 1.0, 0.5, {0, 1});
  machine.backend.fail_copies = 1;
  machine.scheduler.BeginStep();
  const auto slot = machine.scheduler.Acquire(0);
  EXPECT_EQ(slot.status().message(), "copy failed");
  EXPECT_EQ(machine.scheduler.Release(0).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(machine.scheduler.Acquire(0).ok());
}

TEST(StreamSchedulerTest, MisuseIsNamed) {
  Machine machine(3, 2, 1.0, 0.5, {0, 1, 2});
  ASSERT_TRUE(machine.scheduler.Acquire(0).ok());
  EXPECT_THAT(std::string(machine.scheduler.Acquire(0).status().message()),
              HasSubstr("group 0 is held already"));
  ASSERT_TRUE(machine.scheduler.Acquire(1).ok());
  EXPECT_THAT(std::string(machine.scheduler.Acquire(2).status().message()),
              HasSubstr("all 2 slots are held, none is left for group 2"));
  EXPECT_EQ(machine.scheduler.Release(2).message(), "group 2 is not held");
}

TEST(StreamSchedulerTest, AGroupThatIsNotThereIsRefusedAndChangesNothing) {
  Machine machine(3, 2, 1.0, 0.5, {0, 1, 2});
  machine.Step(machine.All());
  machine.scheduler.BeginStep();
  ASSERT_TRUE(machine.scheduler.Acquire(0).ok());
  const int copied = machine.backend.bytes_copied;
  for (const int group : {-1, 3, std::numeric_limits<int>::min(),
                          std::numeric_limits<int>::max()}) {
    EXPECT_EQ(machine.scheduler.Acquire(group).status(),
              absl::InvalidArgumentError(
                  absl::StrCat("there is no group ", group, ", only 0 to 2")));
    EXPECT_EQ(machine.scheduler.Release(group).code(),
              absl::StatusCode::kFailedPrecondition);
  }
  EXPECT_EQ(machine.backend.bytes_copied, copied);
  EXPECT_TRUE(machine.scheduler.Release(0).ok());
  machine.scheduler.BeginStep();
  EXPECT_THAT(machine.scheduler.order(), ElementsAre(0));
}

TEST(StreamSchedulerTest, ResetAfterAnInterruptBeginsAnew) {
  Machine machine(4, 2, 1.0, 0.5, {0, 1, 2, 3});
  machine.Step(machine.All());
  machine.Step(machine.All());
  machine.scheduler.BeginStep();
  ASSERT_TRUE(machine.scheduler.Acquire(0).ok());
  machine.scheduler.Reset();
  EXPECT_EQ(machine.backend.drains, 1);
  machine.Step(machine.All());
  machine.Step(machine.All());
  EXPECT_THAT(machine.backend.violations, IsEmpty());
  EXPECT_THAT(machine.scheduler.order(), ElementsAre(0, 1, 2, 3));
}

TEST(StreamSchedulerTest, TellsWhatTheSlotsHold) {
  Machine machine(4, 2, 1.0, 0.5, {0, 1, 2, 3});
  StreamScheduler& scheduler = machine.scheduler;
  EXPECT_THAT(scheduler.in_slots(), IsEmpty());
  ASSERT_TRUE(scheduler.Acquire(2).ok());
  EXPECT_THAT(scheduler.in_slots(), ElementsAre(2));
  machine.backend.fail_copies = 1;
  EXPECT_FALSE(scheduler.Acquire(1).ok());
  EXPECT_THAT(scheduler.in_slots(), ElementsAre(2));
  scheduler.Reset();
  EXPECT_THAT(scheduler.in_slots(), IsEmpty());
  machine.Step(machine.All());
  machine.Step(machine.All());
  EXPECT_THAT(scheduler.in_slots(), UnorderedElementsAre(0, 1)) << "ahead";
}

TEST(VirtualBackendTest, NoticesWhatASchedulerMustNotDo) {
  VirtualBackend backend({1.0, 1.0}, 1);
  ASSERT_TRUE(backend.StartCopy(0, 0).ok());
  backend.Compute(0, 0, 5.0);                 // without Await
  ASSERT_TRUE(backend.StartCopy(1, 0).ok());  // without MarkUsed
  backend.Compute(0, 0, 1.0);
  EXPECT_THAT(backend.violations,
              ElementsAre("read before the copy", "overwritten early",
                          "wrong group in slot"));
}

// Random machines and orders, with failing copies and interrupts among them.
TEST(StreamSchedulerTest, NoSlotIsReadEarlyOrOverwrittenEarly) {
  std::mt19937 random(11);
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  for (int schedule = 0; schedule < 10'000; ++schedule) {
    const int groups = pick(1, 8);
    std::vector<int> sources;
    for (int g = 0; g < groups; ++g) sources.push_back(pick(0, 2));
    Machine machine(groups, pick(1, 4), 0.1 * pick(1, 20), 0.1 * pick(1, 40),
                    {}, sources);
    for (int g = 0; g < groups; ++g) {
      if (pick(0, 2) > 0) machine.streamed.insert(g);
    }
    std::vector<int> order = machine.All();
    for (int step = 0; step < 4; ++step) {
      if (pick(0, 3) == 0) std::shuffle(order.begin(), order.end(), random);
      std::vector<int> run = order;
      if (pick(0, 3) == 0) {
        run.resize(static_cast<std::size_t>(pick(0, groups)));
      }
      if (pick(0, 3) == 0) {  // some come back, at once or later
        for (int again = pick(1, 4); again > 0 && !run.empty(); --again) {
          const int size = static_cast<int>(run.size());
          const int group = run[static_cast<std::size_t>(pick(0, size - 1))];
          run.insert(run.begin() + pick(0, size), group);
        }
      }
      machine.backend.fail_copies = pick(0, 4) == 0 ? pick(1, 6) : 0;
      machine.scheduler.BeginStep();
      for (const int group : run) {
        if (machine.streamed.count(group) == 0) continue;
        const auto slot = machine.scheduler.Acquire(group);
        if (!slot.ok() || pick(0, 30) == 0) {
          machine.scheduler.Reset();
          break;
        }
        machine.backend.Compute(group, *slot, machine.compute);
        ASSERT_TRUE(machine.scheduler.Release(group).ok());
      }
    }
    ASSERT_THAT(machine.backend.violations, IsEmpty()) << schedule;
  }
}

}  // namespace
}  // namespace distorch
