// SPDX-License-Identifier: Apache-2.0
// Arithmetic of weight patches: low-rank (LoRA, with an optional middle
// factor for convolutions) and full differences.
//
//   weight' = round(float32(weight) + sum_i scale_i * delta_i)
//
// with delta = up x down for matrices (Hu et al., "LoRA: Low-Rank Adaptation
// of Large Language Models", 2021), the same on flattened kernels for
// convolutions, and up x (mid x down) where a middle factor is given (the
// CP form of LoCon). All sums are taken in float32; the result is rounded
// once to the weight's own type.
//
// Memory: rows are worked on in pieces of an eighth of the weight's bytes (at
// the most kLargestPiece, at least one row). About three pieces are in flight,
// so that patching needs less than half of the weight again, whatever its
// size; the factors in float32 come on top.
#ifndef DISTORCH_MOVER_PATCH_MATH_H_
#define DISTORCH_MOVER_PATCH_MATH_H_

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace distorch {

// Beyond this a larger piece makes the matrix products no faster.
inline constexpr std::int64_t kLargestPiece = std::int64_t{16} << 20;

// A low-rank patch. All tensors are on the device of the weight.
struct LowRankPatch {
  torch::stable::Tensor up;    // [out, rank, 1...]
  torch::stable::Tensor down;  // [rank, in, k...], or [rank, in, 1...] with mid
  torch::stable::Tensor mid;   // [rank, rank, k...]; no elements: none
  double scale = 1.0;          // strength * alpha / rank
};

// A full difference of the weight's own number of elements.
struct DiffPatch {
  torch::stable::Tensor diff;
  double scale = 1.0;
};

// Patches `weight` [out, ...] in place. The weight must be contiguous; its
// type may be any floating type that converts to and from float32. Shapes are
// the caller's duty (the Python package checks them and names the block).
// Errors of torch pass through as exceptions; the weight is then undefined,
// so callers patch a copy.
void PatchWeight(torch::stable::Tensor weight,
                 const std::vector<LowRankPatch>& low_rank,
                 const std::vector<DiffPatch>& diffs);

}  // namespace distorch

#endif  // DISTORCH_MOVER_PATCH_MATH_H_
