// SPDX-License-Identifier: Apache-2.0
#include "allocation/device_id.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <string_view>
#include <unordered_set>

#include "absl/container/flat_hash_set.h"

namespace distorch {
namespace {

TEST(DeviceIdTest, ReadsWhatItPrints) {
  const struct {
    std::string_view text;
    std::string printed;
  } cases[] = {
      {"cuda:0", "cuda:0"}, {"cuda", "cuda:0"},     {"CUDA:1", "cuda:1"},
      {"cpu", "cpu"},       {"cpu:0", "cpu"},       {"mps", "mps"},
      {"sim:12", "sim:12"}, {"my_npu", "my_npu:0"}, {"cuda:9999", "cuda:9999"},
  };
  for (const auto& test : cases) {
    const std::optional<DeviceId> device = DeviceId::FromString(test.text);
    ASSERT_TRUE(device.has_value()) << test.text;
    EXPECT_EQ(device->ToString(), test.printed);
    EXPECT_EQ(DeviceId::FromString(device->ToString()), device);
  }
}

TEST(DeviceIdTest, CallsDevicesAsTorchDoes) {
  EXPECT_EQ(DeviceId::FromString("corex:1"), DeviceId("cuda", 1));
  EXPECT_EQ(DeviceId::FromString("IXUCA"), DeviceId("cuda", 0));
  EXPECT_EQ(DeviceId::FromString("directml:1"), DeviceId("privateuseone", 1));
  EXPECT_EQ(TorchKind("xpu"), "xpu");
}

TEST(DeviceIdTest, RefusesWhatIsNoDevice) {
  for (const std::string_view text :
       {"", ":0", "cuda:", "cuda:x", "cuda:-1", "cuda:10000",
        "cuda:99999999999999999999", "cpu:1", "mps:1", "0cuda", "cu da",
        " cuda:0", "cuda:0 ", "cuda:0:0", "cüda"}) {
    EXPECT_EQ(DeviceId::FromString(text), std::nullopt) << text;
  }
}

TEST(DeviceIdTest, OrdersByKindThenByIndexAsANumber) {
  const std::set<DeviceId> ordered = {DeviceId("cuda", 10), DeviceId("cuda", 2),
                                      DeviceId("cpu")};
  std::string text;
  for (const DeviceId& device : ordered) text += device.ToString() + " ";
  EXPECT_EQ(text, "cpu cuda:2 cuda:10 ");
}

TEST(DeviceIdTest, Hashes) {
  EXPECT_EQ((absl::flat_hash_set<DeviceId>{
                 DeviceId("cuda", 1), DeviceId("cuda", 1), DeviceId("cuda", 2)})
                .size(),
            2u);
  EXPECT_EQ(
      (std::unordered_set<DeviceId>{DeviceId("cpu"), DeviceId("cpu")}).size(),
      1u);
}

TEST(DeviceIdTest, KnowsTheHostAndTheEmptyDevice) {
  EXPECT_TRUE(DeviceId("cpu").IsHost());
  EXPECT_FALSE(DeviceId("cuda", 0).IsHost());
  EXPECT_TRUE(DeviceId().empty());
  EXPECT_EQ(DeviceId().ToString(), "(no device)");
}

}  // namespace
}  // namespace distorch
