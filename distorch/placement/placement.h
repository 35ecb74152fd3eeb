// SPDX-License-Identifier: Apache-2.0
// Load, patch, distribute: brings the blocks of a model to where a plan puts
// them, keeps what was found, spills under pressure, and gives back.
//
//   Placement placement({cpu, cuda0, cuda1}, /*compute=*/1, blocks, tensors);
//   placement.Assign({1, 1, 2, 0});           // by block
//   placement.Bring(table, {.patched = ...});
//   placement.Verify(table);                  // read back
//   placement.Spill(table, /*device=*/1, GiB(1));
//   placement.Release(table);                 // copies nothing
//
// What it sees to, whatever the table is:
//   - Patched blocks that leave the compute device come first: it then holds
//     nothing but what is in flight. Then patched ones that stay, then others.
//   - A tensor that is one under several names is made once.
//   - What a tensor was found as is kept: where that will do, nothing is made.
//   - Tensors of a layer group that will be brought to the compute device at
//     each step are made straight into one slab, once.
//   - Strong guarantee: every new tensor is made before the first is hung, so
//     that after any failure (the n-th allocation or copy, a patch that does
//     not fit, an interrupt) the model and all counters are as before. The one
//     exception is `give_way`.
//
// Not for use by several threads at once. Holds no model and no table: the
// table is an argument of each call, and must be the same one each time.
#ifndef DISTORCH_PLACEMENT_PLACEMENT_H_
#define DISTORCH_PLACEMENT_PLACEMENT_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "allocation/bytes.h"
#include "allocation/device_id.h"
#include "distorch/placement/tensor_table.h"

namespace distorch {

// What placing has to know of a block.
struct PlacedBlock {
  std::string name;
  std::string group = "";  // its layer group; "": none, it is in no slab
  bool stays = false;      // on the compute device, whatever happens
  bool in_slab = true;     // false where it shares tensors with other blocks
};

struct BringOptions {
  // By tensor: whether it is to have patches in it. Empty: none.
  std::vector<bool> patched = {};
  // By tensor: whether its patches differ from those it was made with. Empty:
  // none.
  std::vector<bool> changed = {};
  // What is replaced goes back to what was found first, so that old and new
  // never need memory together. After a failure these tensors are as found.
  bool give_way = false;
  // Bytes that the host can take; patched blocks that stay there need a copy.
  Bytes host_free = Bytes::Max();
};

// Bytes moved, by (from, to) as indices of devices.
using Transfers = std::map<std::pair<uint32_t, uint32_t>, Bytes>;

class Placement {
 public:
  // `devices`: all that tensors are found on or may go to, the host among
  // them. `compute` is the index of the one that runs the model. Tensors come
  // in the order of their blocks.
  // Requires valid indices, and `same` to name an earlier or the same tensor.
  Placement(std::vector<DeviceId> devices, uint32_t compute,
            std::vector<PlacedBlock> blocks, std::vector<TensorInfo> tensors);

  // Where each block belongs from now on; moves nothing. Forgets what was
  // spilled. InvalidArgument when it is not one device for each block.
  absl::Status Assign(std::vector<uint32_t> device_of_block);

  // Brings each tensor to where its block belongs, with its patches. What is
  // there already stays. ResourceExhausted when the host cannot take the
  // patched copies, FailedPrecondition when nothing was assigned; what the
  // table throws passes through.
  absl::Status Bring(TensorTable& table, const BringOptions& options);

  // Moves blocks from a device to the host, the last first, until `wanted`
  // bytes are free; returns what was freed. Blocks that stay are left; blocks
  // in one slab, or that share a tensor, leave together. They come back with
  // the next Bring after Return.
  Bytes Spill(TensorTable& table, uint32_t device, Bytes wanted);

  // Of the blocks that belong on the compute device, those in front may be
  // there as far as `budget` bytes go (blocks that stay are counted first), the
  // others belong on the host until the next call. Moves nothing. Returns the
  // bytes left out.
  Bytes Fit(Bytes budget);

  // A spilled block belongs where it was assigned again. Moves nothing.
  void Return(uint32_t block) { spilled_[block] = false; }

  // The model holds again what was found. Copies nothing but what was written
  // into tensors since (see TensorTable::Written). Whatever is thrown on the
  // way, all is given back; then the first is thrown.
  void Release(TensorTable& table);

  // Internal, naming the first block that is not where it belongs.
  absl::Status Verify(TensorTable& table) const;

  // Reports.
  uint32_t Target(uint32_t block) const;
  bool spilled(uint32_t block) const { return spilled_[block]; }
  bool patched(uint32_t tensor) const { return states_[tensor].patched; }
  // Whether a tensor is one that was made, not the one that was found.
  bool made(uint32_t tensor) const { return states_[tensor].id != kFound; }
  // Bytes on each device, tensors that are one counted once.
  std::vector<Bytes> BytesPerDevice() const;
  Bytes BlockBytes(uint32_t block) const { return block_bytes_[block]; }
  const Transfers& transfers() const { return transfers_; }
  Bytes factor_bytes() const { return factor_bytes_; }
  const std::vector<DeviceId>& devices() const { return devices_; }

 private:
  friend class Staging;

  struct State {
    MadeId id = kFound;
    uint32_t device = 0;
    SlabId slab = kNoSlab;
    bool patched = false;
  };

  std::vector<uint32_t> LoadOrder(const std::vector<bool>& patched) const;
  absl::Status CheckHost(const std::vector<bool>& patched,
                         Bytes host_free) const;
  bool UsesSlab(uint32_t block, uint32_t device) const;

  std::vector<DeviceId> devices_;
  uint32_t compute_;
  uint32_t host_ = 0;
  std::vector<PlacedBlock> blocks_;
  std::vector<TensorInfo> tensors_;
  std::vector<std::vector<uint32_t>> of_block_;  // tensors by block
  std::vector<Bytes> block_bytes_;
  std::vector<uint32_t> assigned_;  // by block; empty before Assign
  std::vector<bool> spilled_;       // by block
  std::vector<State> states_;       // by tensor
  Transfers transfers_;
  Bytes factor_bytes_;
};

}  // namespace distorch

#endif  // DISTORCH_PLACEMENT_PLACEMENT_H_
