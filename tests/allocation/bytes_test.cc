// SPDX-License-Identifier: Apache-2.0
#include "allocation/bytes.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>

namespace distorch {
namespace {

constexpr int64_t kMin = std::numeric_limits<int64_t>::min();

TEST(BytesTest, UnitsAreBinary) {
  EXPECT_EQ(KiB(1), Bytes(1024));
  EXPECT_EQ(MiB(3), Bytes(int64_t{3} * 1048576));
  EXPECT_EQ(GiB(2) + MiB(512), Bytes(2684354560));
  EXPECT_LT(GiB(1) - GiB(2), Bytes(0));
}

TEST(BytesTest, FormatsLikeTheExamplesOfTheHeader) {
  const struct {
    Bytes amount;
    std::string text;
  } cases[] = {
      {Bytes(0), "0 B"},
      {Bytes(17), "17 B"},
      {Bytes(1023), "1023 B"},
      {Bytes(1024), "1 KB"},
      {Bytes(1536), "1.50 KB"},
      {MiB(512), "512 MB"},
      {MiB(512) + KiB(512), "512.50 MB"},
      {GiB(1), "1.00 GB"},
      {GiB(2) + MiB(512), "2.50 GB"},
      {GiB(0) - GiB(2), "-2.00 GB"},
      {Bytes(0) - MiB(1), "-1 MB"},
      {GiB(1) + MiB(5), "1.00 GB"},  // 1.0049: down
      {GiB(1) + MiB(6), "1.01 GB"},  // 1.0059: up
      {Bytes::Max(), "8589934592.00 GB"},
      {Bytes(kMin), "-8589934592.00 GB"},
  };
  for (const auto& test : cases) {
    EXPECT_EQ(FormatBytes(test.amount), test.text) << test.amount;
  }
  EXPECT_EQ(FormatGB(MiB(512)), "0.50");
  EXPECT_EQ(FormatMB(KiB(512)), "0.50");
}

TEST(BytesTest, CheckedAddSaysWhenASumDoesNotFit) {
  EXPECT_EQ(CheckedAdd(Bytes(1), Bytes(2)), Bytes(3));
  EXPECT_EQ(CheckedAdd(Bytes::Max(), Bytes(1)), std::nullopt);
  EXPECT_EQ(CheckedAdd(Bytes(kMin), Bytes(-1)), std::nullopt);
}

TEST(BytesTest, SaturatingAddStopsAtTheEnds) {
  EXPECT_EQ(SaturatingAdd(Bytes(1), Bytes(2)), Bytes(3));
  EXPECT_EQ(SaturatingAdd(Bytes::Max(), GiB(1)), Bytes::Max());
  EXPECT_EQ(SaturatingAdd(Bytes(kMin), Bytes(-5)), Bytes(kMin));
}

TEST(BytesTest, MulDivRoundsDownAndDoesNotOverflowOnTheWay) {
  EXPECT_EQ(MulDiv(GiB(10), 1, 3), Bytes(3579139413));
  EXPECT_EQ(MulDiv(Bytes::Max(), 1000, 1000), Bytes::Max());
  EXPECT_EQ(MulDiv(Bytes::Max(), 2, 1), Bytes::Max());
  EXPECT_EQ(MulDiv(Bytes(0), 7, 3), Bytes(0));
}

}  // namespace
}  // namespace distorch
