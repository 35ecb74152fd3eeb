// SPDX-License-Identifier: Apache-2.0
#include "distorch/unload/eject_policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace distorch {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr std::int64_t kMiB = std::int64_t{1} << 20;

ManagedState Model(std::int64_t id, bool eject, DeviceBytes bytes) {
  return {id, "model " + std::to_string(id), eject, std::move(bytes)};
}

TEST(ChooseEjectedTest, NoneFlaggedIsNobody) {
  EXPECT_THAT(ChooseEjected({}), IsEmpty());
  EXPECT_THAT(ChooseEjected({Model(1, false, {{"cuda:0", Bytes(kMiB)}})}),
              IsEmpty());
}

TEST(ChooseEjectedTest, ExactlyTheFlaggedLargestFirst) {
  EXPECT_THAT(
      ChooseEjected(
          {Model(1, true, {{"cuda:0", Bytes(kMiB)}}),
           Model(2, false, {{"cuda:0", Bytes(9 * kMiB)}}),
           Model(3, true, {{"cuda:0", Bytes(kMiB)}, {"cpu", Bytes(kMiB)}}),
           Model(4, true, {{"cuda:1", Bytes(kMiB)}})}),
      ElementsAre(3, 1, 4));
}

TEST(MakeEjectReportTest, SaysWhatEachTouchedDeviceGaveBackAndWhoIsStillThere) {
  const std::vector<ManagedState> models = {
      Model(1, true,
            {{"cuda:0", Bytes(4 * kMiB)},
             {"cuda:1", Bytes(2 * kMiB)},
             {"cuda:2", Bytes(0)}}),
      Model(2, false, {{"cuda:1", Bytes(kMiB)}}),
      Model(3, false, {{"cuda:1", Bytes(3 * kMiB)}, {"cpu", Bytes(kMiB)}})};
  const EjectReport report = MakeEjectReport(
      models, {1}, {{"cuda:0", Bytes(5 * kMiB)}, {"cuda:1", Bytes(6 * kMiB)}},
      {{"cuda:0", Bytes(kMiB)}, {"cuda:1", Bytes(4 * kMiB)}});
  EXPECT_THAT(report.ejected, ElementsAre("model 1"));
  EXPECT_THAT(report.kept, ElementsAre("model 2", "model 3"));
  ASSERT_EQ(report.devices.size(), 2U);
  EXPECT_EQ(report.devices[0].device, "cuda:0");
  EXPECT_EQ(report.devices[0].freed, Bytes(4 * kMiB));
  EXPECT_THAT(report.devices[0].holders, IsEmpty());
  EXPECT_EQ(report.devices[1].freed, Bytes(2 * kMiB));
  EXPECT_THAT(report.devices[1].holders,
              ElementsAre("model 3 (" + FormatBytes(Bytes(3 * kMiB)) + ")",
                          "model 2 (" + FormatBytes(Bytes(kMiB)) + ")"));
}

TEST(MakeEjectReportTest, NothingEjectedTouchesNothing) {
  const EjectReport report =
      MakeEjectReport({Model(1, false, {{"cuda:0", Bytes(kMiB)}})}, {}, {}, {});
  EXPECT_THAT(report.ejected, IsEmpty());
  EXPECT_THAT(report.kept, ElementsAre("model 1"));
  EXPECT_THAT(report.devices, IsEmpty());
}

}  // namespace
}  // namespace distorch
