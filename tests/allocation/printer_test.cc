// SPDX-License-Identifier: Apache-2.0
// Round trips of specs made at random: ParseSpec(FormatSpec(x)) == x.
#include "allocation/printer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "allocation/parser.h"

namespace distorch {
namespace {

class SpecMaker {
 public:
  explicit SpecMaker(uint32_t seed) : random_(seed) {}

  Spec Make() {
    Spec spec;
    switch (Below(5)) {
      case 0:
        spec.form = ComputeShare{MemoryShare{Below(kBillion + 1)}};
        break;
      case 1:
        spec.form = Below(2) == 0 ? AutoAllocation{} : AutoAllocation{Size()};
        break;
      case 2:
        spec.form = VirtualVram{Size(), Devices()};
        break;
      default:
        spec.form = Entries();
        break;
    }
    if (Below(3) == 0) spec.compute = DeviceId("cuda", Index());
    return spec;
  }

 private:
  int64_t Below(int64_t n) {
    return std::uniform_int_distribution<int64_t>(0, n - 1)(random_);
  }
  int Index() { return static_cast<int>(Below(DeviceId::kMaxIndex + 1)); }
  Bytes Size() {
    const int64_t bits = Below(63);
    return Bytes(Below((int64_t{1} << bits) + 1) >> Below(4) << Below(1));
  }
  std::vector<DeviceId> Devices() {
    std::vector<DeviceId> devices = {
        DeviceId("cpu"), DeviceId("mps"), DeviceId("cuda", Index()),
        DeviceId("xpu", Index()), DeviceId("hpu", Index())};
    std::shuffle(devices.begin(), devices.end(), random_);
    devices.resize(static_cast<size_t>(1 + Below(5)));
    return devices;
  }
  Amount MakeAmount() {
    switch (Below(3)) {
      case 0:
        return Size();
      case 1:
        return ModelShare{1 + Below(20 * kBillion)};
      default:
        return MemoryShare{Below(kBillion + 1)};
    }
  }
  EntryList Entries() {
    EntryList list;
    const bool with_rest = Below(2) == 0;
    for (const DeviceId& device : Devices()) {
      const auto mode = static_cast<ExecutionMode>(Below(3));
      list.entries.push_back({device, MakeAmount(), mode});
    }
    if (with_rest) list.entries.back().amount = Rest{};
    return list;
  }

  std::mt19937 random_;
};

TEST(PrinterTest, EverySpecIsReadBack) {
  SpecMaker maker(20240917);
  for (int i = 0; i < 100'000; ++i) {
    const Spec spec = maker.Make();
    const std::string text = FormatSpec(spec);
    const absl::StatusOr<Spec> read = ParseSpec(text);
    ASSERT_TRUE(read.ok()) << read.status();
    ASSERT_TRUE(*read == spec) << text << " became " << FormatSpec(*read);
  }
}

TEST(PrinterTest, PrintsSizesExactlyInTheLargestUnitThatFits) {
  EXPECT_EQ(FormatExactSize(Bytes(0)), "0b");
  EXPECT_EQ(FormatExactSize(Bytes(1023)), "1023b");
  EXPECT_EQ(FormatExactSize(KiB(1)), "1kb");
  EXPECT_EQ(FormatExactSize(GiB(2) + MiB(512)), "2.5gb");
  EXPECT_EQ(FormatExactSize(GiB(1) + Bytes(1)), "1073741825b");
  EXPECT_EQ(FormatExactSize(GiB(1) + KiB(128)), "1024.125mb");
  EXPECT_EQ(FormatExactSize(Bytes::Max()), "9223372036854775807b");
}

TEST(PrinterTest, PrintsBillionths) {
  EXPECT_EQ(FormatBillionths(0), "0");
  EXPECT_EQ(FormatBillionths(1), "0.000000001");
  EXPECT_EQ(FormatBillionths(2'500'000'000), "2.5");
}

}  // namespace
}  // namespace distorch
