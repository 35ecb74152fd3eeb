// SPDX-License-Identifier: Apache-2.0
#include "allocation/spec.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

#include "allocation/parser.h"
#include "allocation/printer.h"

namespace distorch {
namespace {

Spec MustParse(std::string_view text) {
  const absl::StatusOr<Spec> spec =
      ParseSpec(text, {.devices = {}, .extra_kinds = {"sim"}});
  EXPECT_TRUE(spec.ok()) << spec.status();
  return spec.ok() ? *spec : Spec();
}

std::string Names(const std::vector<DeviceId>& devices) {
  std::string names;
  for (const DeviceId& device : devices) names += device.ToString() + " ";
  return names;
}

TEST(SpecTest, NamesItsDevicesOnce) {
  const struct {
    std::string_view text;
    std::string names;
  } cases[] = {
      {"cuda:1,2gb;cuda,1gb;cpu,*", "cuda:1 cuda:0 cpu "},
      {"cuda:1,2gb;cpu,*#cuda:0", "cuda:1 cpu cuda:0 "},
      {"cuda:1,2gb;cpu,*#cuda:1", "cuda:1 cpu "},
      {"#cuda:0;4;cuda:1,cpu", "cuda:1 cpu cuda:0 "},
      {"#;4;cuda:1", "cuda:1 "},
      {"auto", ""},
      {"auto#cuda:2", "cuda:2 "},
      {"0.8#cuda:0", "cuda:0 "},
  };
  for (const auto& test : cases) {
    EXPECT_EQ(Names(MustParse(test.text).Devices()), test.names) << test.text;
  }
}

TEST(SpecTest, OnlyAutoUsesEveryDevice) {
  EXPECT_TRUE(MustParse("auto,reserve=1gb#cuda:0").UsesEveryDevice());
  for (const std::string_view text : {"0.8", "cuda:0,1gb", "#cuda:0;4;cpu"}) {
    EXPECT_FALSE(MustParse(text).UsesEveryDevice()) << text;
  }
}

TEST(SpecTest, IsComputedElsewhere) {
  const Spec spec = MustParse("cuda:0,2gb;cpu,*#cuda:0;4;cpu");
  EXPECT_EQ(FormatSpec(spec.On(DeviceId("cuda", 1))),
            "cuda:0,2gb;cpu,*#cuda:1");
  EXPECT_EQ(FormatSpec(MustParse("#cuda:0;4;cpu").On(DeviceId("sim", 2))),
            "#sim:2;4gb;cpu");
  EXPECT_EQ(FormatSpec(Spec::Whole(DeviceId("mps"))), "mps,*#mps");
}

// cuda:7 and cuda:8 are gone.
TEST(SpecTest, LosesDevices) {
  const struct {
    std::string_view text;
    std::string left;
  } cases[] = {
      {"sim:1,2gb;sim:0,*#sim:0", "sim:1,2gb;sim:0,*#sim:0"},
      {"cuda:7,2gb;sim:1,2gb;sim:0,*#sim:0", "sim:1,2gb;sim:0,*#sim:0"},
      {"sim:1,2gb;cuda:7,*#sim:0", "sim:1,2gb;sim:0,*#sim:0"},
      {"cuda:7,50%#sim:0", "sim:0,*#sim:0"},
      {"sim:0,2gb;cuda:7,*#sim:0", "sim:0,2gb;cpu,*#sim:0"},
      {"sim:0,2gb;cuda:7,8gb;cpu,4gb#sim:0", "sim:0,2gb;cpu,*#sim:0"},
      {"cuda:7,8gb;cpu,4gb#sim:0", "cpu,4gb;sim:0,*#sim:0"},
      {"sim:0,25%;cuda:7,75%#sim:0", "sim:0,25%#sim:0"},
      {"sim:0,25%,mode=stream;cuda:7,75%#sim:0", "sim:0,25%,mode=stream#sim:0"},
      // Beside `*` a percentage is a cap, not a ratio.
      {"sim:0,25%;cuda:7,*#sim:0", "sim:0,25%;cpu,*#sim:0"},
      {"sim:0,0%;cuda:7,75%#sim:0", "sim:0,0%;cpu,*#sim:0"},
      {"cuda:7,2gb;cuda:8,*", "cpu,*"},
      {"#sim:0;4;sim:1,cuda:7,cuda:8", "#sim:0;4gb;sim:1,cpu"},
      {"#sim:0;4;sim:0", "sim:0,*#sim:0"},
      {"0.8#sim:0", "0.8#sim:0"},
      {"auto,reserve=1gb#sim:0", "auto,reserve=1gb#sim:0"},
  };
  const std::vector<DeviceId> gone = {DeviceId("cuda", 7), DeviceId("cuda", 8)};
  for (const auto& test : cases) {
    const Spec left = MustParse(test.text).Without(gone);
    EXPECT_EQ(FormatSpec(left), test.left) << test.text;
    EXPECT_TRUE(MustParse(FormatSpec(left)) == left) << test.text;
  }
}

TEST(SpecTest, KnowsWhatItHasLost) {
  const std::vector<DeviceId> lost = {DeviceId("cuda", 7), DeviceId("cuda", 8)};
  const Spec spec = MustParse("cuda:7,2gb;sim:0,*#sim:0");
  EXPECT_EQ(spec.Without(lost).gone, std::vector{DeviceId("cuda", 7)});
  EXPECT_EQ(MustParse("#sim:0;4;cuda:8").Without(lost).gone,
            std::vector{DeviceId("cuda", 8)});
  EXPECT_TRUE(spec.gone.empty());
}

}  // namespace
}  // namespace distorch
