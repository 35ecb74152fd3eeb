// SPDX-License-Identifier: Apache-2.0
#include "allocation/block_inventory.h"

#include <algorithm>
#include <array>
#include <cstdint>

#include "absl/container/flat_hash_map.h"
#include "absl/hash/hash.h"
#include "absl/strings/ascii.h"
#include "absl/strings/string_view.h"

namespace distorch {
namespace {

absl::string_view View(std::string_view text) {
  return {text.data(), text.size()};
}

// What a module prefix.N is made of: the same for two modules with the same
// blocks below them, whatever their order.
struct Structure {
  uint64_t hash = 0;
  size_t blocks = 0;
  bool is_block = false;  // prefix.N itself is a block
  bool HasChildren() const { return blocks > (is_block ? 1u : 0u); }
};

bool IsNumber(std::string_view part) {
  return !part.empty() && std::all_of(part.begin(), part.end(), [](char c) {
    return c >= '0' && c <= '9';
  });
}

// Calls visit(end) for each numbered part of `name`, outermost first; the part
// ends at `end`. Stops when visit returns false.
template <typename Visit>
void ForEachNumber(std::string_view name, Visit visit) {
  size_t begin = 0;
  while (begin <= name.size()) {
    const size_t end = std::min(name.find('.', begin), name.size());
    if (IsNumber(name.substr(begin, end - begin)) && !visit(end)) return;
    begin = end + 1;
  }
}

// "layers" of "layers.12"; "" of "12".
std::string_view Parent(std::string_view module) {
  const size_t dot = module.rfind('.');
  return dot == std::string_view::npos ? "" : module.substr(0, dot);
}

using Structures = absl::flat_hash_map<absl::string_view, Structure>;

Structures CollectStructures(absl::Span<const std::string> names) {
  Structures structures;
  for (const std::string& name : names) {
    ForEachNumber(name, [&](size_t end) {
      const std::string_view view = name;
      Structure& module = structures[View(view.substr(0, end))];
      const std::string_view below = view.substr(end);
      // A sum, so that the order of blocks does not matter.
      module.hash += absl::Hash<absl::string_view>()(View(below));
      ++module.blocks;
      module.is_block = module.is_block || below.empty();
      return true;
    });
  }
  return structures;
}

// The parents of which two children are made alike.
absl::flat_hash_map<absl::string_view, bool> RepeatedParents(
    const Structures& structures) {
  absl::flat_hash_map<absl::string_view, bool> repeated;
  absl::flat_hash_map<std::pair<absl::string_view, uint64_t>, size_t> seen;
  for (const auto& [module, structure] : structures) {
    if (!structure.HasChildren()) continue;
    const std::string_view parent =
        Parent(std::string_view(module.data(), module.size()));
    if (++seen[{View(parent), structure.hash + structure.blocks}] == 2) {
      repeated[View(parent)] = true;
    }
  }
  return repeated;
}

std::string_view LastPart(std::string_view name) {
  const size_t dot = name.rfind('.');
  return dot == std::string_view::npos ? name : name.substr(dot + 1);
}

bool IsTokenTable(std::string_view part) {
  constexpr std::array<std::string_view, 5> kTables = {
      "embed_tokens", "token_embedding", "word_embeddings", "wte", "shared"};
  return std::find(kTables.begin(), kTables.end(), part) != kTables.end();
}

}  // namespace

std::vector<std::string> GroupNames(absl::Span<const std::string> names) {
  const Structures structures = CollectStructures(names);
  const auto repeated = RepeatedParents(structures);
  std::vector<std::string> groups(names.size());
  for (size_t i = 0; i < names.size(); ++i) {
    ForEachNumber(names[i], [&](size_t end) {
      const std::string_view module = std::string_view(names[i]).substr(0, end);
      if (!repeated.contains(View(Parent(module)))) return true;
      groups[i] = std::string(module);
      return false;
    });
  }
  return groups;
}

std::string TextEncoderHeadReason(std::string_view block_name) {
  const std::string part = absl::AsciiStrToLower(View(LastPart(block_name)));
  const bool is_embedding = IsTokenTable(part) || part == "wpe" ||
                            part.find("embed") != std::string::npos;
  return is_embedding ? "embedding of a text encoder" : "";
}

bool LooksLikeTextEncoder(absl::Span<const std::string> block_names) {
  return std::any_of(
      block_names.begin(), block_names.end(),
      [](const std::string& name) { return IsTokenTable(LastPart(name)); });
}

std::vector<Block> BlocksOfTensors(absl::Span<const TensorEntry> tensors) {
  std::vector<Block> blocks;
  absl::flat_hash_map<std::string, size_t> index;
  for (const TensorEntry& tensor : tensors) {
    std::string module(Parent(tensor.name));
    if (module.empty()) module = "(root)";
    const auto [entry, is_new] = index.emplace(module, blocks.size());
    if (is_new) {
      blocks.emplace_back();
      blocks.back().name = module;
    }
    blocks[entry->second].bytes += tensor.bytes;
  }
  std::vector<std::string> names;
  names.reserve(blocks.size());
  for (const Block& block : blocks) names.push_back(block.name);
  const std::vector<std::string> groups = GroupNames(names);
  const bool is_text_encoder = LooksLikeTextEncoder(names);
  for (size_t i = 0; i < blocks.size(); ++i) {
    blocks[i].group = groups[i];
    if (is_text_encoder) blocks[i].pinned = TextEncoderHeadReason(names[i]);
  }
  return blocks;
}

}  // namespace distorch
