// SPDX-License-Identifier: Apache-2.0
// What placing asks of a model: its tensors by index, and a few calls that
// make, hang and drop them. `Placement` decides; a table moves. There is one
// for Python modules (bindings/distorch), one for ComfyUI's patcher (patches)
// and one for torch::nn::Module (distorch/torch_module.h).
//
// A table may throw from every call that is not noexcept, with whatever its
// framework throws (an out-of-memory error, an interrupt): it passes through
// `Placement` unchanged, after everything was brought back to where it was.
#ifndef DISTORCH_PLACEMENT_TENSOR_TABLE_H_
#define DISTORCH_PLACEMENT_TENSOR_TABLE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "allocation/bytes.h"

namespace distorch {

// One parameter or buffer, as it was found.
struct TensorInfo {
  uint32_t block = 0;  // index of the block that owns it
  // The first tensor of the table that is the same memory, or its own index:
  // what is one under several names stays one.
  uint32_t same = 0;
  uint32_t device = 0;  // where it lies: an index of Placement's devices
  // Bytes of the plain tensors it is made of: one, or several for a quantised
  // class (its data, its scales). As they will be when it is made.
  std::vector<Bytes> parts;
  // Whether it may hang in the model as it was found, on its own device.
  // False where the model wants another type than the file has.
  bool as_found = true;
  // Whether it can be made from its bytes, and so lie in a slab.
  bool from_bytes = true;

  Bytes bytes() const {
    Bytes sum;
    for (const Bytes part : parts) sum += part;
    return sum;
  }
};

// A tensor that a table has made, and holds until it is dropped. 0 is the
// tensor as it was found.
using MadeId = uint64_t;
inline constexpr MadeId kFound = 0;

// Memory for the tensors of one layer group; 0: none.
using SlabId = uint64_t;
inline constexpr SlabId kNoSlab = 0;

// Where in a slab the parts of a tensor are to lie; bytes.
struct SlabPlace {
  SlabId slab = kNoSlab;
  absl::Span<const Bytes> offsets;
};

struct Made {
  MadeId id = kFound;
  Bytes factor_bytes;  // of patches, brought to the compute device for it
};

class TensorTable {
 public:
  virtual ~TensorTable() = default;

  enum class From { kOriginal, kCurrent };

  // Makes tensor `i` on `device`, straight into `place` where it names a slab
  // of that device. From what was found: with its patches, if it has any. From
  // what the model holds now: the same with what was written since.
  virtual Made Make(uint32_t i, uint32_t device, From from,
                    const SlabPlace& place) = 0;

  // The model uses it from now on. Throws for an interrupt only; it is then
  // undone by another Hang.
  virtual void Hang(uint32_t i, MadeId made) = 0;

  // Lets go of a tensor that hangs nowhere. Ids are never used again.
  virtual void Drop(MadeId made) noexcept = 0;

  virtual SlabId MakeSlab(uint32_t device, Bytes bytes) = 0;
  // No further tensor will be made in it. Its memory goes with the last of its
  // tensors.
  virtual void SealSlab(SlabId slab) noexcept = 0;

  // Where each tensor that the model holds now is, read from the tensors:
  // indices of Placement's devices, -1 for any other place.
  virtual std::vector<int64_t> ReadBack() = 0;
  // Where one is, for people: "cuda:3", or "cpu, cuda:0" for several parts.
  virtual std::string PlaceOf(uint32_t i) = 0;

  // Whether the tensor that hangs now holds something that what was found does
  // not, apart from its patches: somebody has written into it.
  virtual bool Written(uint32_t i) = 0;
  // Copies what was written into what was found.
  virtual void KeepWritten(uint32_t i) = 0;

  // How far a load is, after each block. Throwing here ends the load.
  virtual void Progress(uint32_t /*done_blocks*/, uint32_t /*blocks*/,
                        Bytes /*done*/, Bytes /*all*/) {}
};

}  // namespace distorch

#endif  // DISTORCH_PLACEMENT_TENSOR_TABLE_H_
