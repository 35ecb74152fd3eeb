// SPDX-License-Identifier: Apache-2.0
// NCCL on the fake devices: sends and receives of one group are matched when it
// ends, then run when both streams have come to them.
#include <algorithm>

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
    const auto there = streams_.Queue(to.stream, {});
    const Access accesses[] = {{from.data, from.bytes, false},
                               {to.data, to.bytes, true}};
    StreamSimulation::Work move;
    move.kind = "NCCL kernel";
    move.accesses = accesses;
    move.behind = {there};
    move.link = {from.stream->device, to.stream->device};
    move.seconds = clock().Seconds(*move.link, from.bytes, peer_gbps);
    move.run = [this, from, to] {
      Move(to.data, to.stream->device, from.data, from.stream->device,
           from.bytes);
    };
    StreamSimulation::Work end;
    end.behind = {streams_.Queue(from.stream, std::move(move))};
    streams_.Queue(to.stream, std::move(end));
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
    if (posted.stream == nullptr) return kInvalidUsage;
    posted_.push_back(posted);
    return 0;
  };
  f.send = [this, post](const void* data, std::size_t bytes, int, int peer,
                        Comm comm, void* stream) {
    return post("ncclSend",
                {true, comms_.at(comm).first, peer, const_cast<void*>(data),
                 bytes, StreamFor(stream)});
  };
  f.receive = [this, post](void* data, std::size_t bytes, int, int peer,
                           Comm comm, void* stream) {
    return post("ncclRecv", {false, comms_.at(comm).first, peer, data, bytes,
                             StreamFor(stream)});
  };
  // As the root's sends to every other rank; a call of another rank receives.
  f.broadcast = [this, post](const void* from, void* to, std::size_t bytes, int,
                             int root, Comm comm, void* stream) {
    const auto& [rank, devices] = comms_.at(comm);
    if (rank != root) {
      return post("ncclBroadcast",
                  {false, rank, root, to, bytes, StreamFor(stream)});
    }
    if (const int code = Enter("ncclBroadcast")) return code;
    Stream* const on = StreamFor(stream);
    if (on == nullptr) return kInvalidUsage;
    for (int peer = 0; peer < static_cast<int>(devices.size()); ++peer) {
      if (peer == root) continue;
      posted_.push_back({true, rank, peer, const_cast<void*>(from), bytes, on});
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
