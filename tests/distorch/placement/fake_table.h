// SPDX-License-Identifier: Apache-2.0
// A table without tensors, for tests: keeps what was made and what hangs,
// throws at the call it is told to, and checks what a table may expect.
#ifndef DISTORCH_TESTS_PLACEMENT_FAKE_TABLE_H_
#define DISTORCH_TESTS_PLACEMENT_FAKE_TABLE_H_

#include <gtest/gtest.h>

#include <array>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "distorch/placement/placement.h"

namespace distorch::testing {

// Thrown by the table where it is told to: an error that the placement does
// not know.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline constexpr uint32_t kCpu = 0, kGpu = 1, kDonor = 2;

// Two layers of two blocks each, an embedding that stays, and a head that is
// the embedding's weight again: 6 blocks, 8 tensors.
struct SmallModel {
  std::vector<DeviceId> devices = {DeviceId("cpu"), DeviceId("cuda", 0),
                                   DeviceId("cuda", 1)};
  std::vector<PlacedBlock> blocks = {
      {.name = "embed", .stays = true, .in_slab = false},
      {.name = "layers.0.a", .group = "layers.0"},
      {.name = "layers.0.b", .group = "layers.0"},
      {.name = "layers.1.a", .group = "layers.1"},
      {.name = "layers.1.b", .group = "layers.1"},
      {.name = "head", .stays = true, .in_slab = false}};
  std::vector<TensorInfo> tensors = {
      {.block = 0, .same = 0, .parts = {Bytes(1000)}},
      {.block = 1, .same = 1, .parts = {Bytes(4096)}},
      {.block = 1, .same = 2, .parts = {Bytes(16)}},
      {.block = 2, .same = 3, .parts = {Bytes(4096), Bytes(64)}},
      {.block = 3, .same = 4, .parts = {Bytes(4096)}},
      {.block = 3, .same = 5, .parts = {Bytes(16)}},
      {.block = 4, .same = 6, .parts = {Bytes(4096), Bytes(64)}},
      {.block = 5, .same = 0, .parts = {Bytes(1000)}}};

  Placement Make() const { return {devices, kGpu, blocks, tensors}; }
};

class FakeTable : public TensorTable {
 public:
  struct Tensor {
    uint32_t device = 0;
    bool patched = false;
    SlabId slab = kNoSlab;
    int written = 0;  // what was written into it
    bool operator==(const Tensor&) const = default;
  };

  explicit FakeTable(const std::vector<TensorInfo>& infos) : infos_(infos) {
    for (const TensorInfo& info : infos) {
      found_.push_back({.device = info.device});
    }
    hangs_.resize(infos.size(), kFound);
    has_patches.resize(infos.size());
  }
  ~FakeTable() override = default;

  Made Make(uint32_t i, uint32_t device, From from,
            const SlabPlace& place) override {
    Tick("make");
    Tensor tensor = from == From::kCurrent ? Current(i) : Tensor{};
    tensor.device = device;
    tensor.patched |= from == From::kOriginal && has_patches[infos_[i].same];
    tensor.slab = place.slab;
    if (place.slab != kNoSlab) {
      EXPECT_EQ(place.offsets.size(), infos_[i].parts.size());
      EXPECT_TRUE(open_slabs.contains(place.slab));
      EXPECT_EQ(slabs.at(place.slab).first, device);
    } else {
      EXPECT_TRUE(place.offsets.empty());
    }
    made.emplace(++next_, tensor);
    made_of.emplace_back(i, from);
    return {next_,
            tensor.patched && from == From::kOriginal ? Bytes(7) : Bytes()};
  }
  void Hang(uint32_t i, MadeId id) override {
    EXPECT_TRUE(id == kFound || made.contains(id));
    if (interrupted_before) Tick("hang");
    hangs_[i] = id;
    if (!interrupted_before) Tick("hang");
  }
  void Drop(MadeId id) noexcept override {
    EXPECT_EQ(made.erase(id), 1U) << "dropped twice";
    for (const MadeId hanging : hangs_) EXPECT_NE(hanging, id);
  }
  SlabId MakeSlab(uint32_t device, Bytes bytes) override {
    Tick("slab");
    EXPECT_GT(bytes, Bytes());
    slabs.emplace(++next_, std::pair(device, bytes));
    open_slabs.insert(next_);
    return next_;
  }
  void SealSlab(SlabId slab) noexcept override {
    EXPECT_EQ(open_slabs.erase(slab), 1U) << "sealed twice";
  }
  std::vector<int64_t> ReadBack() override {
    std::vector<int64_t> devices;
    for (uint32_t i = 0; i < hangs_.size(); ++i) {
      devices.push_back(i == lost ? int64_t{-1} : int64_t{Current(i).device});
    }
    return devices;
  }
  std::string PlaceOf(uint32_t i) override {
    return i == lost ? "xpu:0"
                     : SmallModel().devices[Current(i).device].ToString();
  }
  bool Written(uint32_t i) override { return Current(i).written != 0; }
  void KeepWritten(uint32_t i) override {
    Tick("keep");
    found_[i].written = Current(i).written;
  }
  void Progress(uint32_t blocks, uint32_t of, Bytes bytes, Bytes all) override {
    Tick("progress");
    progress.push_back({blocks, of, bytes.value(), all.value()});
  }

  Tensor& Current(uint32_t i) {
    return hangs_[i] == kFound ? found_[i] : made.at(hangs_[i]);
  }
  const Tensor& Found(uint32_t i) const { return found_[i]; }
  MadeId hanging(uint32_t i) const { return hangs_[i]; }

  // What a failed call must leave as it was.
  auto Snapshot() const { return std::pair(hangs_, made); }

  std::vector<std::array<int64_t, 4>> progress;  // as told
  std::vector<bool> has_patches;  // by the first name of a tensor
  std::map<MadeId, Tensor> made;  // not dropped yet
  std::map<SlabId, std::pair<uint32_t, Bytes>> slabs;  // ever made
  std::set<SlabId> open_slabs;
  std::vector<std::pair<uint32_t, From>> made_of;  // calls of Make
  int calls = 0;                                   // that may throw
  int fail_at = -1;  // the number of the call that throws, from 0
  bool interrupted_before = false;  // a Hang that throws has done nothing
  uint32_t lost = ~0U;              // a tensor that is read back somewhere else

 private:
  void Tick(const std::string& what) {
    if (calls++ == fail_at) throw Fault(what);
  }

  std::vector<TensorInfo> infos_;
  std::vector<Tensor> found_;
  std::vector<MadeId> hangs_;
  uint64_t next_ = 0;
};

}  // namespace distorch::testing

#endif  // DISTORCH_TESTS_PLACEMENT_FAKE_TABLE_H_
