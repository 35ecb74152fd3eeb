// SPDX-License-Identifier: Apache-2.0
#include "tests/support/cuda/access_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <string>
#include <vector>

namespace distorch {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class AccessLogTest : public testing::Test {
 protected:
  // An access of bytes [begin, end) by a stream that knows `clocks_[actor]`.
  std::vector<std::string> Do(int actor, std::size_t begin, std::size_t end,
                              bool write) {
    VectorClock& clock = clocks_[actor];
    std::vector<std::string> races;
    const Stamp stamp{actor, clock.Tick(actor), "copy", ++serial_};
    log_.Note({bytes_ + begin, end - begin, write}, stamp, clock, &races);
    return races;
  }
  std::vector<std::string> Read(int actor, std::size_t begin, std::size_t end) {
    return Do(actor, begin, end, false);
  }
  std::vector<std::string> Write(int actor, std::size_t begin,
                                 std::size_t end) {
    return Do(actor, begin, end, true);
  }

  std::byte bytes_[100];
  VectorClock clocks_[4];
  AccessLog log_;
  std::uint64_t serial_ = 0;
};

TEST_F(AccessLogTest, OneActorRacesWithNobody) {
  EXPECT_THAT(Write(1, 0, 50), IsEmpty());
  EXPECT_THAT(Read(1, 10, 60), IsEmpty());
  EXPECT_THAT(Write(1, 0, 100), IsEmpty());
}

TEST_F(AccessLogTest, TellsBothPiecesOfWork) {
  Write(1, 0, 10);
  EXPECT_THAT(Read(2, 5, 20),
              ElementsAre("copy #2 of stream 2 reads 15 bytes that copy #1 of "
                          "stream 1 writes: nothing orders them"));
  EXPECT_THAT(Write(3, 8, 9),
              ElementsAre("copy #3 of stream 3 writes 1 bytes that copy #1 of "
                          "stream 1 writes: nothing orders them",
                          "copy #3 of stream 3 writes 1 bytes that copy #2 of "
                          "stream 2 reads: nothing orders them"));
}

TEST_F(AccessLogTest, NeighboursAndReadersDoNotRace) {
  Write(1, 0, 10);
  EXPECT_THAT(Write(2, 10, 20), IsEmpty());
  clocks_[2].Join(clocks_[1]);
  clocks_[3].Join(clocks_[2]);
  EXPECT_THAT(Read(2, 0, 10), IsEmpty());
  EXPECT_THAT(Read(3, 0, 10), IsEmpty());
  EXPECT_EQ(Write(1, 0, 10).size(), 2U) << "both readers";
}

TEST_F(AccessLogTest, OrderGoesOverThirdActors) {
  Write(1, 0, 10);
  clocks_[2].Join(clocks_[1]);
  clocks_[3].Join(clocks_[2]);
  EXPECT_THAT(Write(3, 0, 10), IsEmpty());
  Write(1, 20, 30);  // after the join
  EXPECT_EQ(Read(3, 20, 30).size(), 1U);
}

TEST_F(AccessLogTest, AReadThatIsOverwrittenInOrderIsForgotten) {
  Read(1, 0, 10);
  clocks_[2].Join(clocks_[1]);
  Write(2, 0, 10);
  clocks_[3].Join(clocks_[2]);
  EXPECT_THAT(Write(3, 2, 4), IsEmpty());
}

TEST_F(AccessLogTest, OtherMemoryAtTheSameAddressIsNew) {
  Write(1, 0, 30);
  log_.Forget(bytes_ + 10, 10);
  EXPECT_THAT(Write(2, 10, 20), IsEmpty());
  EXPECT_EQ(Write(2, 9, 10).size(), 1U);
  EXPECT_EQ(Write(2, 20, 21).size(), 1U);
}

// Against a log that keeps every access of every byte.
TEST_F(AccessLogTest, AgreesWithComparingEveryPair) {
  std::uint32_t state = 1;
  const auto random = [&](std::uint32_t below) {
    state = state * 1664525 + 1013904223;
    return (state >> 8) % below;
  };
  struct Done {
    int actor;
    std::uint32_t epoch;
    std::size_t begin, end;
    bool write;
  };
  int raced = 0;
  for (int round = 0; round < 300; ++round) {
    for (VectorClock& clock : clocks_) clock = {};
    log_.Forget(bytes_, 100);
    std::vector<Done> all;
    for (int i = 0; i < 20; ++i) {
      const int actor = static_cast<int>(random(4));
      if (random(2) == 0) clocks_[actor].Join(clocks_[random(4)]);
      const std::size_t begin = random(90);
      const std::size_t end = begin + 1 + random(10);
      const bool write = random(2) == 0;
      VectorClock clock = clocks_[actor];
      const std::uint32_t epoch = clock.Tick(actor);
      bool races = false;
      for (const Done& d : all) {
        if (d.begin < end && begin < d.end && (d.write || write) &&
            !clock.Covers(d.actor, d.epoch)) {
          races = true;
        }
      }
      const bool told = !Do(actor, begin, end, write).empty();
      // What raced before may hide behind what raced with it.
      if (told) {
        EXPECT_TRUE(races) << round << " " << i;
      }
      if (races) {
        EXPECT_TRUE(told) << round << " " << i;
        ++raced;
        break;
      }
      all.push_back({actor, epoch, begin, end, write});
    }
  }
  EXPECT_GE(raced, 200);
}

}  // namespace
}  // namespace distorch
