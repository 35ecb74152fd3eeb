// SPDX-License-Identifier: Apache-2.0
#include "distorch/placement/slab_layout.h"

#include <algorithm>
#include <cstddef>
#include <vector>

namespace distorch {
namespace {

bool IsWholePages(const std::vector<Bytes>& parts) {
  return std::all_of(parts.begin(), parts.end(), [](Bytes part) {
    return part.value() % kHostPage.value() == 0;
  });
}

}  // namespace

SlabLayout LayOut(absl::Span<const std::vector<Bytes>> tensors) {
  SlabLayout layout;
  layout.offsets.resize(tensors.size());
  for (const bool whole_pages : {true, false}) {
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (IsWholePages(tensors[i]) != whole_pages) continue;
      for (const Bytes part : tensors[i]) {
        layout.offsets[i].push_back(layout.bytes);
        layout.bytes += AlignUp(part);
      }
    }
  }
  return layout;
}

}  // namespace distorch
