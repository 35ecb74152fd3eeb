// SPDX-License-Identifier: Apache-2.0
// The new tensors of one call, made but not yet part of the model: internal to
// the placement. Dropped unless they are committed.
#ifndef DISTORCH_PLACEMENT_STAGING_H_
#define DISTORCH_PLACEMENT_STAGING_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "allocation/bytes.h"
#include "distorch/placement/placement.h"
#include "distorch/placement/tensor_table.h"

namespace distorch {

class Staging {
 public:
  Staging(Placement& placement, TensorTable& table);
  Staging(const Staging&) = delete;  // owns what it has made
  Staging& operator=(const Staging&) = delete;
  ~Staging();

  // Tensor `i` is to be on `device`. Nothing is made yet.
  void Want(uint32_t i, uint32_t device, bool patched, bool changed);
  // It is to be what was found, or, on the host, what it is now.
  void WantOnHost(uint32_t i);

  // Lays out the slabs of all that is wanted; before anything is made.
  void PlanSlabs();
  // Hangs what was found where another tensor is wanted.
  void GiveWay();
  // Makes what is wanted of one block.
  void MakeBlock(uint32_t block);
  // Hangs all. After an exception none is.
  void Commit();

 private:
  struct Item {
    uint32_t tensor = 0;
    uint32_t device = 0;
    bool patched = false;
    bool make = false;  // else what was found
    TensorTable::From from = TensorTable::From::kOriginal;
    MadeId id = kFound;
    SlabId slab = kNoSlab;
    std::vector<Bytes> offsets = {};
    int64_t slab_index = -1;  // in slabs_
  };
  struct Slab {
    uint32_t device = 0;
    Bytes bytes;
    SlabId id = kNoSlab;
  };

  void Add(Item item);
  void Make(Item& item);
  void Count(const Item& item, Bytes factor_bytes);

  Placement& placement_;
  TensorTable& table_;
  std::vector<Item> items_;
  std::vector<int64_t> item_of_;               // by tensor, -1: none
  std::vector<std::vector<size_t>> of_block_;  // items by block
  std::vector<Slab> slabs_;
  std::vector<MadeId> made_;  // by this staging, not committed
  Transfers transfers_;
  Bytes factor_bytes_;
};

}  // namespace distorch

#endif  // DISTORCH_PLACEMENT_STAGING_H_
