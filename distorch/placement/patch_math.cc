// SPDX-License-Identifier: Apache-2.0
#include "distorch/placement/patch_math.h"

#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/stableivalue_conversions.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>

namespace distorch {
namespace {

namespace stable = torch::stable;
using stable::Tensor;

void Check(bool fits, const char* message) {
  if (!fits) throw std::invalid_argument(message);
}

std::int64_t RowElements(const Tensor& tensor) {
  return tensor.size(0) == 0 ? 0 : tensor.numel() / tensor.size(0);
}

// out = a x b, without an allocation.
void Multiply(const Tensor& a, const Tensor& b, const Tensor& out) {
  std::array<StableIValue, 3> stack{stable::detail::from(a),
                                    stable::detail::from(b),
                                    stable::detail::from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(),
                                               TORCH_ABI_VERSION));
  stable::detail::to<Tensor>(stack[0]);  // takes over the result's reference
}

// Row `index` of the scratch tensor, its first `elements` elements.
Tensor Row(Tensor& scratch, std::int64_t index, std::int64_t elements) {
  Tensor row = stable::narrow(scratch, 0, index, 1);
  return stable::narrow(row, 1, 0, elements);
}

}  // namespace

void RightFactor(const Tensor& down, const Tensor& mid, Tensor out) {
  Check(mid.dim() >= 2 && mid.numel() > 0 && down.dim() >= 1 &&
            down.size(0) == mid.size(1),
        "right_factor: down and mid do not fit each other");
  const std::int64_t rank = mid.size(0);
  const std::int64_t inner = mid.size(1);
  const std::int64_t kernel = mid.numel() / (rank * inner);
  const Tensor flat = stable::reshape(down, {inner, RowElements(down)});
  Check(out.dim() == 2 && out.size(0) == rank &&
            out.size(1) == kernel * flat.size(1),
        "right_factor: the result's tensor has the wrong shape");
  // mid [rank, inner, kernel] -> [rank, kernel, inner] x down [inner, in]
  const Tensor turned = stable::contiguous(
      stable::transpose(stable::reshape(mid, {rank, inner, kernel}), 1, 2));
  const Tensor product = stable::matmul(turned, flat);
  Tensor parts = stable::view(out, {rank, flat.size(1), kernel});
  stable::copy_(parts, stable::transpose(product, 1, 2));
}

void PatchWeight(Tensor weight, Tensor scratch, const Tensor& up,
                 const Tensor& right, const std::vector<Tensor>& diffs) {
  if (weight.numel() == 0) return;
  const std::int64_t rows = weight.dim() == 0 ? 1 : weight.size(0);
  const std::int64_t row_elements = weight.numel() / rows;
  const bool low_rank = up.numel() > 0;
  const auto parts = static_cast<std::int64_t>(diffs.size()) + 1 + low_rank;
  Check(scratch.dim() == 2 && scratch.size(0) == parts + 1 &&
            scratch.size(1) >= row_elements,
        "patch_weight: the scratch tensor has the wrong shape");
  Tensor matrix = stable::view(weight, {rows, row_elements});
  Tensor all_up = up;
  const std::int64_t step = scratch.size(1) / row_elements;
  for (std::int64_t row = 0; row < rows; row += step) {
    const std::int64_t count = std::min(step, rows - row);
    const std::int64_t elements = count * row_elements;
    Tensor target = stable::narrow(matrix, 0, row, count);
    Tensor first =
        stable::view(Row(scratch, 1, elements), {count, row_elements});
    stable::copy_(first, target);
    if (low_rank) {
      Multiply(stable::narrow(all_up, 0, row, count), right,
               stable::view(Row(scratch, 2, elements), {count, row_elements}));
    }
    for (std::size_t i = 0; i < diffs.size(); ++i) {
      Tensor line = stable::view(diffs[i], {1, weight.numel()});
      Tensor place =
          Row(scratch, static_cast<std::int64_t>(i) + 2 + low_rank, elements);
      stable::copy_(place,
                    stable::narrow(line, 1, row * row_elements, elements));
    }
    // The first row of the scratch tensor takes the sum of the others.
    Tensor sum = Row(scratch, 0, elements);
    Tensor terms = stable::narrow(scratch, 0, 1, parts);
    terms = stable::narrow(terms, 1, 0, elements);
    const std::array<std::int64_t, 1> over{0};
    stable::sum_out(sum, terms, torch::headeronly::IntHeaderOnlyArrayRef(over),
                    /*keepdim=*/true);
    stable::copy_(target, stable::view(sum, {count, row_elements}));
  }
}

}  // namespace distorch
