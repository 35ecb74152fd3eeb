// SPDX-License-Identifier: Apache-2.0
// NCCL on the fake devices: sends and receives of one group are matched when it
// ends, then run when both streams have come to them.
#include <algorithm>
#include <cstring>

#include "tests/support/cuda/fake_cuda.h"

namespace distorch {
namespace {

constexpr int kInvalidUsage = 5;

}  // namespace

int FakeCuda::FlushNccl() {
  std::vector<Posted> open = std::exchange(posted_, {});
  while (!open.empty()) {
    const Posted one = open.front();
    const auto other =
        std::find_if(open.begin(), open.end(), [&](const Posted& each) {
          return each.send != one.send && each.rank == one.peer &&
                 each.peer == one.rank && each.bytes == one.bytes;
        });
    if (other == open.end()) {
      violations.emplace_back("a send or receive without its other half");
      return kInvalidUsage;
    }
    const Posted& from = one.send ? one : *other;
    const Posted& to = one.send ? *other : one;
    // Both streams stop until the other has come: as NCCL's kernels do.
    auto arrived = std::make_shared<int>(0);
    auto moved = std::make_shared<bool>(false);
    const auto meet = [=, this, to_data = to.data, from_data = from.data,
                       bytes = one.bytes](const std::shared_ptr<bool>& here) {
      if (!*here) *here = (++*arrived, true);
      if (*arrived < 2) return false;
      if (!*moved) Move(to_data, to.rank, from_data, from.rank, bytes, 50);
      return *moved = true;
    };
    for (void* stream : {from.stream, to.stream}) {
      streams_.at(stream)->queue.emplace_back(
          [meet, here = std::make_shared<bool>(false)] { return meet(here); });
    }
    open.erase(other);
    open.erase(open.begin());
  }
  return 0;
}

NcclFunctions FakeCuda::Nccl() {
  using Comm = NcclFunctions::Comm;
  NcclFunctions f;
  f.init_all = [this](Comm* out, int count, const int* devices) {
    if (const int code = Enter("ncclCommInitAll")) return code;
    for (int rank = 0; rank < count; ++rank) {
      void* key = new char;  // freed with the communicator
      comms_[key] = {rank, std::vector<int>(devices, devices + count)};
      out[rank] = key;
    }
    return 0;
  };
  const auto end = [this](const char* name) {
    return [this, name](Comm comm) {
      Enter(name);
      delete static_cast<char*>(comm);
      return comms_.erase(comm) == 1 ? 0 : kInvalidUsage;
    };
  };
  f.destroy = end("ncclCommDestroy");
  f.abort = end("ncclCommAbort");
  f.group_start = [this] {
    grouping_ = true;
    return Enter("ncclGroupStart");
  };
  f.group_end = [this] {
    grouping_ = false;
    if (const int code = Enter("ncclGroupEnd")) return code;
    return FlushNccl();
  };
  const auto post = [this](const char* name, Posted posted) {
    if (const int code = Enter(name)) return code;
    if (!grouping_) violations.emplace_back("outside of a group");
    CheckDevice("a communicator's stream", streams_.at(posted.stream)->device);
    posted_.push_back(posted);
    return 0;
  };
  f.send = [this, post](const void* data, std::size_t bytes, int, int peer,
                        Comm comm, void* stream) {
    return post("ncclSend", {true, comms_.at(comm).first, peer,
                             const_cast<void*>(data), bytes, stream});
  };
  f.receive = [this, post](void* data, std::size_t bytes, int, int peer,
                           Comm comm, void* stream) {
    return post("ncclRecv",
                {false, comms_.at(comm).first, peer, data, bytes, stream});
  };
  // As the root's sends to every other rank; a call of another rank receives.
  f.broadcast = [this, post](const void* from, void* to, std::size_t bytes, int,
                             int root, Comm comm, void* stream) {
    const auto& [rank, devices] = comms_.at(comm);
    if (rank != root) {
      return post("ncclBroadcast", {false, rank, root, to, bytes, stream});
    }
    if (const int code = Enter("ncclBroadcast")) return code;
    for (int peer = 0; peer < static_cast<int>(devices.size()); ++peer) {
      if (peer == root) continue;
      posted_.push_back(
          {true, rank, peer, const_cast<void*>(from), bytes, stream});
    }
    return 0;
  };
  f.error_text = [](int code) {
    return code == 3 ? "internal error" : "invalid usage";
  };
  f.last_error = [](Comm) { return "as told by the test"; };
  return f;
}

}  // namespace distorch
