// SPDX-License-Identifier: Apache-2.0
#include "distorch/placement/slab_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace distorch {
namespace {

using Offsets = std::vector<std::vector<Bytes>>;

TEST(AlignUpTest, RoundsUpToTheNextMultiple) {
  EXPECT_EQ(AlignUp(Bytes(0)), Bytes(0));
  EXPECT_EQ(AlignUp(Bytes(1)), Bytes(256));
  EXPECT_EQ(AlignUp(Bytes(256)), Bytes(256));
  EXPECT_EQ(AlignUp(Bytes(4097), kHostPage), Bytes(8192));
}

TEST(LayOutTest, PutsWholePagesFirst) {
  const SlabLayout layout =
      LayOut({{Bytes(10), Bytes(300)}, {Bytes(4096)}, {Bytes(8192)}});
  EXPECT_EQ(layout.offsets,
            (Offsets{{Bytes(12288), Bytes(12544)}, {Bytes(0)}, {Bytes(4096)}}));
  EXPECT_EQ(layout.bytes, Bytes(12288 + 256 + 512));
}

TEST(LayOutTest, TensorsWithoutBytesTakeNone) {
  const SlabLayout layout = LayOut({{Bytes(0)}, {Bytes(1)}});
  EXPECT_EQ(layout.offsets, (Offsets{{Bytes(0)}, {Bytes(0)}}));
  EXPECT_EQ(layout.bytes, Bytes(256));
}

TEST(LayOutTest, NothingTakesNothing) { EXPECT_EQ(LayOut({}).bytes, Bytes(0)); }

}  // namespace
}  // namespace distorch
