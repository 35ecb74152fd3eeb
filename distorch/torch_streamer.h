// SPDX-License-Identifier: Apache-2.0
// Brings layer groups of a torch::nn::Module to the compute device ahead of
// their use, on torch's own streams and events: the scheduler's backend for
// C++ programs. Header only, as distorch/torch_module.h, which is its user.
#ifndef DISTORCH_DISTORCH_TORCH_STREAMER_H_
#define DISTORCH_DISTORCH_TORCH_STREAMER_H_

#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/torch.h>

#include <algorithm>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "distorch/execution/stream_scheduler.h"
#include "distorch/placement/slab_layout.h"

namespace distorch {

// The bytes of `slab` from `offset` on, as a tensor like `like`: its type,
// shape and memory format.
inline torch::Tensor SlabView(const torch::Tensor& slab, Bytes offset,
                              const torch::Tensor& like) {
  const torch::Tensor flat =
      slab.narrow(0, offset.value(), static_cast<int64_t>(like.nbytes()))
          .view(like.scalar_type());
  if (like.is_contiguous()) return flat.view(like.sizes());
  return flat.as_strided(
      like.sizes(),
      torch::empty_like(like, like.options().device(torch::kMeta)).strides());
}

class TorchStreamer : public StreamBackend {
 public:
  // `groups`: tensors of the module that lie elsewhere; what they hold now is
  // what is copied. Throws c10::OutOfMemoryError when there is no room for the
  // slots.
  TorchStreamer(std::vector<std::vector<torch::Tensor>> groups,
                torch::Device compute, int slots)
      : compute_(compute),
        device_(compute.type()),
        copies_(device_.getStreamFromGlobalPool(compute)) {
    Bytes slot_bytes;
    for (std::vector<torch::Tensor>& tensors : groups) {
      Group group;
      std::vector<std::vector<Bytes>> parts;
      for (const torch::Tensor& tensor : tensors) {
        parts.push_back({Bytes(static_cast<int64_t>(tensor.nbytes()))});
        group.stored.push_back(tensor.detach());
      }
      const SlabLayout layout = LayOut(parts);
      for (const auto& offsets : layout.offsets) {
        group.offsets.push_back(offsets[0]);
      }
      group.bytes = layout.bytes;
      group.tensors = std::move(tensors);
      slot_bytes = std::max(slot_bytes, layout.bytes);
      groups_.push_back(std::move(group));
    }
    slots = std::min(slots, static_cast<int>(groups_.size()));
    const auto options = torch::TensorOptions(compute).dtype(torch::kUInt8);
    for (int slot = 0; slot < slots; ++slot) {
      slots_.push_back(torch::empty({slot_bytes.value()}, options));
      ready_.emplace_back(compute.type());
      used_.emplace_back(compute.type());
      // The allocator gives memory out again that kernels queued here may use.
      used_.back().record(device_.getStream(compute));
    }
    scheduler_ = std::make_unique<StreamScheduler>(
        this, static_cast<int>(groups_.size()), slots);
  }
  TorchStreamer(const TorchStreamer&) = delete;  // one user of the slots
  TorchStreamer& operator=(const TorchStreamer&) = delete;

  void BeginStep() { scheduler_->BeginStep(); }

  // The group's tensors are those of a slot, on the current stream.
  void Enter(int group) {
    const absl::StatusOr<int> slot = scheduler_->Acquire(group);
    if (!slot.ok()) Throw(slot.status());
    error_ = nullptr;  // a copy ahead that failed is tried again
    Group& g = groups_[static_cast<size_t>(group)];
    const torch::NoGradGuard no_grad;
    for (size_t t = 0; t < g.tensors.size(); ++t) {
      g.tensors[t].set_data(SlabView(slots_[static_cast<size_t>(*slot)],
                                     g.offsets[t], g.stored[t]));
    }
  }
  // What computes with them is queued. Never throws: a failed copy ahead is
  // tried again when its group is asked for.
  void Leave(int group) noexcept {
    Group& g = groups_[static_cast<size_t>(group)];
    const torch::NoGradGuard no_grad;
    for (size_t t = 0; t < g.tensors.size(); ++t) {
      g.tensors[t].set_data(g.stored[t]);
    }
    scheduler_->Release(group).IgnoreError();
    error_ = nullptr;
  }

  void Drain() override {
    device_.synchronizeStream(copies_);
    device_.synchronizeStream(device_.getStream(compute_));
  }
  Bytes bytes_copied() const { return bytes_copied_; }

 private:
  struct Group {
    std::vector<torch::Tensor> tensors;  // the module's
    std::vector<torch::Tensor> stored;   // what they hold between uses
    std::vector<Bytes> offsets;          // in a slot
    Bytes bytes;
  };

  absl::Status StartCopy(int group, int slot) override {
    const auto s = static_cast<size_t>(slot);
    const Group& g = groups_[static_cast<size_t>(group)];
    try {
      const c10::StreamGuard on_copies(copies_);
      const torch::NoGradGuard no_grad;
      used_[s].block(copies_);
      for (size_t t = 0; t < g.stored.size(); ++t) {
        SlabView(slots_[s], g.offsets[t], g.stored[t])
            .copy_(g.stored[t], /*non_blocking=*/true);
      }
      ready_[s].record(copies_);
    } catch (...) {
      error_ = std::current_exception();
      return absl::InternalError("a copy could not be queued");
    }
    bytes_copied_ += g.bytes;
    return absl::OkStatus();
  }
  absl::Status Await(int slot) override {
    ready_[static_cast<size_t>(slot)].block(device_.getStream(compute_));
    return absl::OkStatus();
  }
  absl::Status MarkUsed(int slot) override {
    used_[static_cast<size_t>(slot)].record(device_.getStream(compute_));
    return absl::OkStatus();
  }
  [[noreturn]] void Throw(const absl::Status& status) {
    if (auto error = std::exchange(error_, nullptr)) {
      std::rethrow_exception(error);
    }
    throw std::logic_error(std::string(status.message()));
  }

  torch::Device compute_;
  c10::impl::VirtualGuardImpl device_;
  c10::Stream copies_;
  std::vector<Group> groups_;
  std::vector<torch::Tensor> slots_;
  std::vector<c10::Event> ready_;  // by slot, behind the last copy into it
  std::vector<c10::Event> used_;   // by slot, behind what computed from it
  std::unique_ptr<StreamScheduler> scheduler_;
  std::exception_ptr error_;
  Bytes bytes_copied_;
};

}  // namespace distorch

#endif  // DISTORCH_DISTORCH_TORCH_STREAMER_H_
