// SPDX-License-Identifier: Apache-2.0
#include "allocation/block_inventory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace distorch {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

using Names = std::vector<std::string>;

TEST(BlockInventoryTest, GroupsRepeatedModules) {
  EXPECT_THAT(GroupNames(Names{"layers.0.attn.q", "layers.0.mlp",
                               "layers.1.attn.q", "layers.1.mlp", "norm"}),
              ElementsAre("layers.0", "layers.0", "layers.1", "layers.1", ""));
}

TEST(BlockInventoryTest, LooksBelowANumberedWrapper) {
  EXPECT_THAT(
      GroupNames(Names{"0.encoder.layer.0.q", "0.encoder.layer.0.k",
                       "0.encoder.layer.1.k", "0.encoder.layer.1.q", "1.proj"}),
      ElementsAre("0.encoder.layer.0", "0.encoder.layer.0", "0.encoder.layer.1",
                  "0.encoder.layer.1", ""));
}

TEST(BlockInventoryTest, LeavesNumberedBlocksAlone) {
  EXPECT_THAT(GroupNames(Names{"mlp.0", "mlp.2", "head"}), Each(""));
  EXPECT_THAT(GroupNames(Names{"0", "1", "2"}), Each(""));
}

TEST(BlockInventoryTest, TakesTheOutermostRepetition) {
  EXPECT_THAT(
      GroupNames(Names{"blocks.0.ffn.0", "blocks.0.ffn.2", "blocks.1.ffn.0",
                       "blocks.1.ffn.2", "blocks.2.other"}),
      ElementsAre("blocks.0", "blocks.0", "blocks.1", "blocks.1", "blocks.2"));
}

TEST(BlockInventoryTest, ALayerMayBeABlockItself) {
  EXPECT_THAT(GroupNames(Names{"l.0", "l.0.q", "l.1", "l.1.q"}),
              ElementsAre("l.0", "l.0", "l.1", "l.1"));
}

TEST(BlockInventoryTest, NamesOfNoShapeAreNoGroup) {
  EXPECT_THAT(GroupNames(Names{"", ".", "a..b", "1.", ".1", "a.b"}), Each(""));
  EXPECT_TRUE(GroupNames(Names{}).empty());
}

TEST(BlockInventoryTest, KnowsTheHeadsOfTextEncoders) {
  for (const std::string_view name :
       {"text_model.embeddings.token_embedding",
        "text_model.embeddings.position_embedding", "shared",
        "encoder.embed_tokens", "transformer.wte", "transformer.wpe",
        "0.auto_model.embeddings.word_embeddings"}) {
    EXPECT_EQ(TextEncoderHeadReason(name), "embedding of a text encoder")
        << name;
  }
  for (const std::string_view name : {"layers.0.q", "embeddings.LayerNorm"}) {
    EXPECT_EQ(TextEncoderHeadReason(name), "") << name;
  }
  EXPECT_TRUE(LooksLikeTextEncoder(Names{"x", "encoder.embed_tokens"}));
  EXPECT_FALSE(LooksLikeTextEncoder(Names{"time_embed.0", "blocks.0.q"}));
}

TEST(BlockInventoryTest, MakesABlockOfEachModulesTensors) {
  const std::vector<TensorEntry> tensors = {
      {"shared.weight", Bytes(100)},
      {"layer.0.q.weight", Bytes(10)},
      {"layer.0.q.bias", Bytes(1)},
      {"layer.0.k.weight", Bytes(20)},
      {"layer.1.q.weight", Bytes(10)},
      {"layer.1.k.weight", Bytes(20)},
      {"scale", Bytes(4)},
      {"layer.0.k.bias", Bytes(2)},
  };
  const std::vector<Block> blocks = BlocksOfTensors(tensors);
  std::string text;
  for (const Block& block : blocks) {
    text += block.name + " " + std::to_string(block.bytes.value()) + " [" +
            block.group + "]" + (block.pinned.empty() ? "" : " pinned") + "\n";
  }
  EXPECT_EQ(text,
            "shared 100 [] pinned\n"
            "layer.0.q 11 [layer.0]\n"
            "layer.0.k 22 [layer.0]\n"
            "layer.1.q 10 [layer.1]\n"
            "layer.1.k 20 [layer.1]\n"
            "(root) 4 []\n");
}

}  // namespace
}  // namespace distorch
