// SPDX-License-Identifier: Apache-2.0
#include "distorch/unload/unload_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace distorch {
namespace {

using testing::IsEmpty;
using testing::Pair;
using testing::UnorderedElementsAre;

TEST(FreedBytesTest, IsWhatADeviceHeldBeforeAndNoLonger) {
  EXPECT_THAT(
      FreedBytes({{"cuda:0", MiB(5)}, {"cuda:1", MiB(1)}, {"cuda:2", MiB(3)}},
                 {{"cuda:0", MiB(2)}, {"cuda:1", MiB(4)}, {"cuda:3", MiB(9)}}),
      UnorderedElementsAre(Pair("cuda:0", MiB(3)), Pair("cuda:2", MiB(3))));
  EXPECT_THAT(FreedBytes({}, {{"cuda:0", MiB(1)}}), IsEmpty());
}

struct TextCase {
  const char* name;
  UnloadReport report;
  const char* text;
};

void PrintTo(const TextCase& tested, std::ostream* out) { *out << tested.name; }

class FormatReportTest : public testing::TestWithParam<TextCase> {};

TEST_P(FormatReportTest, SaysIt) {
  EXPECT_EQ(FormatReport(GetParam().report), GetParam().text);
}

const TextCase kTexts[] = {
    {.name = "NothingFlagged",
     .report = {.flagged_only = true,
                .stay = {{"flux", true, true}, {"wan", false, true}}},
     .text = "no model is flagged, nothing is unloaded\n"
             "still loaded: flux\n"
             "kept in system memory: wan"},
    {.name = "NothingThere",
     .report = {},
     .text = "nothing to unload: no such model is loaded"},
    {.name = "Everything",
     .report = {.unloaded = {{"flux", {"cuda:0", "cuda:1"}}, {"t5", {"cpu"}}},
                .stay = {{"vae", true, false},
                         {"vae", true, false},
                         {"flux", false, true}},
                .devices = {{"cuda:0", MiB(9), MiB(5), MiB(4), {"vae (1 MB)"}},
                            {"cuda:1", MiB(2), MiB(2), Bytes(0), {}}},
                .failures = {"wan: no such device"}},
     .text = "unloaded flux from cuda:0, cuda:1\n"
             "unloaded t5 from cpu\n"
             "cuda:0: 4194304 bytes given back (4.00 MB), still there: vae (1 "
             "MB)\n"
             "cuda:1: 0 bytes given back (0.00 MB)\n"
             "still loaded: vae\n"
             "kept in system memory: flux\n"
             "failed: wan: no such device"},
    {.name = "OnlyAFailure",
     .report = {.flagged_only = true, .failures = {"wan: lost"}},
     .text = "failed: wan: lost"},
};

INSTANTIATE_TEST_SUITE_P(Reports, FormatReportTest, testing::ValuesIn(kTexts),
                         [](const auto& tested) { return tested.param.name; });

}  // namespace
}  // namespace distorch
