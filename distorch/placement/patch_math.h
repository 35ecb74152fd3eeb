// SPDX-License-Identifier: Apache-2.0
// Arithmetic of weight patches: low-rank ones (LoRA, with an optional middle
// factor for convolutions) and full differences.
//
//   weight' = round(float32(weight) + up x right + sum_i diff_i)
//
// with up = [scale_1 up_1, scale_2 up_2, …] and right = [down_1; down_2; …] for
// matrices (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models",
// 2021), the same on flattened kernels for convolutions, and `RightFactor` of
// down and mid where a middle factor is given (the CP form of LoCon). All sums
// are taken in float32; the result is rounded once to the weight's own type.
//
// Rows are worked on in pieces that fit the caller's scratch tensor.
// Results are the caller's tensors, so that running out of memory is his own
// error, with its own type and message: the stable ABI tells that a call of
// torch's failed, and not why. Wrong shapes throw std::invalid_argument, failed
// calls std::runtime_error.
#ifndef DISTORCH_PLACEMENT_PATCH_MATH_H_
#define DISTORCH_PLACEMENT_PATCH_MATH_H_

#include <torch/csrc/stable/tensor.h>

#include <vector>

namespace distorch {

// The right-hand factor of a patch with a middle factor, into `out` [rank, in *
// kernel]: down [rank, in, 1…], mid [rank, rank, kernel…]; all float32.
void RightFactor(const torch::stable::Tensor& down,
                 const torch::stable::Tensor& mid, torch::stable::Tensor out);

// Patches `weight` [out, …] in place. All tensors are contiguous and on the
// device of the weight, whose type may be any that converts to and from
// float32.
//   up       float32 [out, R] with the scales multiplied in; R may be 0
//   right    float32 [R, elements of a row]
//   diffs    float32, scaled, as many elements as the weight, each
//   scratch  float32 [2 + (R > 0) + number of diffs, n]; n >= elements of a
//   row.
//            An eighth of the weight's bytes for n is enough for full speed
// On an exception the weight is undefined: callers patch a copy.
void PatchWeight(torch::stable::Tensor weight, torch::stable::Tensor scratch,
                 const torch::stable::Tensor& up,
                 const torch::stable::Tensor& right,
                 const std::vector<torch::stable::Tensor>& diffs);

}  // namespace distorch

#endif  // DISTORCH_PLACEMENT_PATCH_MATH_H_
