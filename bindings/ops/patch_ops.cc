// SPDX-License-Identifier: Apache-2.0
// torch.ops.distorch.patch_weight and right_factor:
// distorch/placement/patch_math.h for Python.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "distorch/placement/patch_math.h"

namespace {

using torch::stable::Tensor;

void PatchWeight(Tensor weight, Tensor scratch, Tensor up, Tensor right,
                 std::vector<Tensor> diffs) {
  distorch::PatchWeight(weight, scratch, up, right, diffs);
}

Tensor RightFactor(Tensor down, Tensor mid) {
  return distorch::RightFactor(down, mid);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(distorch, library) {
  library.def(
      "patch_weight(Tensor(a!) weight, Tensor(b!) scratch, Tensor up, "
      "Tensor right, Tensor[] diffs) -> ()");
  library.def("right_factor(Tensor down, Tensor mid) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(distorch, CompositeExplicitAutograd, library) {
  library.impl("patch_weight", TORCH_BOX(&PatchWeight));
  library.impl("right_factor", TORCH_BOX(&RightFactor));
}
