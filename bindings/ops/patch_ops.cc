// SPDX-License-Identifier: Apache-2.0
// torch.ops.distorch.patch_weight: distorch/mover/patch_math.h for Python.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstddef>
#include <vector>

#include "distorch/mover/patch_math.h"

namespace {

using torch::stable::Tensor;

// `scales` holds those of the low-rank patches, then those of the differences.
void PatchWeight(Tensor weight, std::vector<Tensor> ups,
                 std::vector<Tensor> downs, std::vector<Tensor> mids,
                 std::vector<Tensor> diffs, std::vector<double> scales) {
  STD_TORCH_CHECK(ups.size() == downs.size() && ups.size() == mids.size() &&
                      ups.size() + diffs.size() == scales.size(),
                  "patch_weight: lists of different lengths");
  std::vector<distorch::LowRankPatch> low_rank;
  for (std::size_t i = 0; i < ups.size(); ++i) {
    low_rank.push_back({ups[i], downs[i], mids[i], scales[i]});
  }
  std::vector<distorch::DiffPatch> full;
  for (std::size_t i = 0; i < diffs.size(); ++i) {
    full.push_back({diffs[i], scales[ups.size() + i]});
  }
  distorch::PatchWeight(weight, low_rank, full);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(distorch, library) {
  library.def(
      "patch_weight(Tensor(a!) weight, Tensor[] ups, Tensor[] downs, "
      "Tensor[] mids, Tensor[] diffs, float[] scales) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(distorch, CompositeExplicitAutograd, library) {
  library.impl("patch_weight", TORCH_BOX(&PatchWeight));
}
