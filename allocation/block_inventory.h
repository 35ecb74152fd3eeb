// SPDX-License-Identifier: Apache-2.0
// Blocks and layer groups from names alone, so that a file and the module that
// is made from it are grouped alike.
#ifndef DISTORCH_ALLOCATION_BLOCK_INVENTORY_H_
#define DISTORCH_ALLOCATION_BLOCK_INVENTORY_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/types/span.h"
#include "allocation/bytes.h"
#include "allocation/plan.h"

namespace distorch {

// The layer group of each block: the outermost `prefix.N` of its name, N a
// number, where at least two of the modules prefix.0, prefix.1, … are made
// alike of blocks below them. "" for blocks outside such a module.
//
//   "layers.0.attn.q", "layers.0.mlp", "layers.1.attn.q", "layers.1.mlp",
//   "norm"                      -> "layers.0" twice, "layers.1" twice, ""
//   "0.encoder.layer.0.q", "0.encoder.layer.0.k", "0.encoder.layer.1.q",
//   "0.encoder.layer.1.k", "1.proj"
//                               -> "0.encoder.layer.0", …, "": 0 and 1 differ
//   "mlp.0", "mlp.2"            -> "" for both: blocks, not made of blocks
std::vector<std::string> GroupNames(absl::Span<const std::string> names);

// Why a block of a text encoder must stay on the compute device: its last part
// is an embedding table ("embed_tokens", "token_embedding", "wte",
// "position_embeddings", T5's "shared"). "" for others.
std::string TextEncoderHeadReason(std::string_view block_name);

// Whether these blocks are a text encoder's: one is a table of tokens.
bool LooksLikeTextEncoder(absl::Span<const std::string> block_names);

// A tensor of a file.
struct TensorEntry {
  std::string name;  // "layers.0.attn.q.weight"
  Bytes bytes;
};

// One block for each module, a module being the tensors whose names differ
// only behind the last "."; "(root)" for tensors without a ".". In the order of
// first appearance, with groups; embeddings of a text encoder are pinned.
std::vector<Block> BlocksOfTensors(absl::Span<const TensorEntry> tensors);

}  // namespace distorch

#endif  // DISTORCH_ALLOCATION_BLOCK_INVENTORY_H_
