// SPDX-License-Identifier: Apache-2.0
// Slabs: the tensors of one layer group that lie on one device, one behind the
// other, so that they move in one copy.
//
//   SlabLayout layout = LayOut({{Bytes(4096)}, {Bytes(10), Bytes(300)}});
//   layout.offsets   // {{0}, {4096, 4352}}
//   layout.bytes     // 4864: the last part, too, is rounded up
//
// Parts that are whole pages come first, so that a slab on the host can be
// registered up to where one of its tensors ends.
#ifndef DISTORCH_PLACEMENT_SLAB_LAYOUT_H_
#define DISTORCH_PLACEMENT_SLAB_LAYOUT_H_

#include <vector>

#include "absl/types/span.h"
#include "allocation/bytes.h"

namespace distorch {

// Parts begin at multiples of this: the alignment of CUDA's own allocator.
inline constexpr Bytes kSlabAlignment{256};
// Of the host; memory is registered by pages. Larger pages of some systems are
// multiples of it.
inline constexpr Bytes kHostPage{4096};

// `size` rounded up to a multiple of `to`. Requires size >= 0, to > 0.
constexpr Bytes AlignUp(Bytes size, Bytes to = kSlabAlignment) {
  return Bytes((size.value() + to.value() - 1) / to.value() * to.value());
}

struct SlabLayout {
  std::vector<std::vector<Bytes>> offsets;  // by tensor, by part; as given
  Bytes bytes;                              // of the whole slab
};

// Where the parts of these tensors begin. Those of whole pages first, else in
// the order given.
SlabLayout LayOut(absl::Span<const std::vector<Bytes>> tensors);

}  // namespace distorch

#endif  // DISTORCH_PLACEMENT_SLAB_LAYOUT_H_
