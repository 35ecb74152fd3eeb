// SPDX-License-Identifier: Apache-2.0
#include "distorch/mover/patch_math.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <utility>

namespace distorch {
namespace {

namespace stable = torch::stable;
using stable::Tensor;

constexpr auto kFloat = torch::headeronly::ScalarType::Float;

Tensor Float(const Tensor& tensor) { return stable::to(tensor, kFloat); }

std::int64_t RowElements(const Tensor& tensor) {
  return tensor.size(0) == 0 ? 0 : tensor.numel() / tensor.size(0);
}

Tensor AsMatrix(const Tensor& tensor) {
  return stable::reshape(stable::contiguous(tensor),
                         {tensor.size(0), RowElements(tensor)});
}

// The right-hand factor [rank, row elements] of a patch, in float32, so that
// a piece of the delta is `rows of up` x `this`.
Tensor RightFactor(const LowRankPatch& patch) {
  const Tensor down = AsMatrix(Float(patch.down));
  if (!patch.mid.defined() || patch.mid.numel() == 0) return down;
  const std::int64_t rank = patch.mid.size(0);
  const std::int64_t inner = patch.mid.size(1);
  const std::int64_t kernel = patch.mid.numel() / (rank * inner);
  // mid [rank, inner, kernel] -> [rank, kernel, inner] x down [inner, in]
  const Tensor mid =
      stable::transpose(stable::reshape(stable::contiguous(Float(patch.mid)),
                                        {rank, inner, kernel}),
                        1, 2);
  const Tensor product = stable::matmul(stable::contiguous(mid), down);
  return stable::reshape(stable::contiguous(stable::transpose(product, 1, 2)),
                         {rank, kernel * down.size(1)});
}

std::int64_t RowsInPiece(const Tensor& weight, std::int64_t row_elements) {
  const auto bytes =
      weight.numel() * static_cast<std::int64_t>(weight.element_size());
  const std::int64_t piece = std::min(bytes / 8, kLargestPiece);
  const auto row_bytes =
      row_elements * static_cast<std::int64_t>(sizeof(float));
  return std::max<std::int64_t>(1, piece / row_bytes);
}

struct Factors {
  Tensor up;     // [out, rank], float32
  Tensor right;  // [rank, row elements], float32
  double scale;
};

}  // namespace

void PatchWeight(Tensor weight, const std::vector<LowRankPatch>& low_rank,
                 const std::vector<DiffPatch>& diffs) {
  if (weight.numel() == 0) return;
  const std::int64_t rows = weight.dim() == 0 ? 1 : weight.size(0);
  const std::int64_t row_elements = weight.numel() / rows;
  Tensor matrix = stable::view(weight, {rows, row_elements});

  std::vector<Factors> factors;
  factors.reserve(low_rank.size());
  for (const LowRankPatch& patch : low_rank) {
    factors.push_back(
        {AsMatrix(Float(patch.up)), RightFactor(patch), patch.scale});
  }
  const std::int64_t step = RowsInPiece(weight, row_elements);
  for (std::int64_t row = 0; row < rows; row += step) {
    const std::int64_t count = std::min(step, rows - row);
    Tensor target = stable::narrow(matrix, 0, row, count);
    Tensor sum = Float(target);
    for (Factors& factor : factors) {
      Tensor up = stable::narrow(factor.up, 0, row, count);
      sum = stable::subtract(sum, stable::matmul(up, factor.right),
                             -factor.scale);
    }
    for (const DiffPatch& patch : diffs) {
      Tensor whole =
          stable::reshape(stable::contiguous(patch.diff), {rows, row_elements});
      const Tensor part = stable::narrow(whole, 0, row, count);
      sum = stable::subtract(sum, Float(part), -patch.scale);
    }
    stable::copy_(target, sum);
  }
}

}  // namespace distorch
