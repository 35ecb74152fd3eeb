// SPDX-License-Identifier: Apache-2.0
#include "distorch/transfer/nccl.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "distorch/device/shared_library.h"

namespace distorch {
namespace {

std::string Names(const std::vector<int>& devices) {
  return absl::StrJoin(devices, ", ", [](std::string* out, int device) {
    absl::StrAppend(out, PlaceName(device));
  });
}

}  // namespace

absl::StatusOr<NcclFunctions> LoadNccl(const std::string& path) {
#ifdef _WIN32
  if (path.empty()) {
    return absl::UnavailableError(
        "NVIDIA makes no NCCL for Windows: copies go pair by pair there");
  }
#endif
  const std::string name = path.empty() ? "libnccl.so.2" : path;
  const SharedLibrary library = SharedLibrary::Open({name});
  if (!library.ok()) {
    return absl::UnavailableError(absl::StrCat(
        name, " was not found: import a torch that is built for CUDA first"));
  }
  NcclFunctions f;
  std::vector<std::string> missing;
  library.Bind("ncclCommInitAll", f.init_all, &missing);
  library.Bind("ncclCommDestroy", f.destroy, &missing);
  library.Bind("ncclCommAbort", f.abort, &missing);
  library.Bind("ncclGroupStart", f.group_start, &missing);
  library.Bind("ncclGroupEnd", f.group_end, &missing);
  library.Bind("ncclBroadcast", f.broadcast, &missing);
  library.Bind("ncclSend", f.send, &missing);
  library.Bind("ncclRecv", f.receive, &missing);
  library.Bind("ncclGetErrorString", f.error_text, &missing);
  library.Bind("ncclGetLastError", f.last_error);
  if (missing.empty()) return f;
  return absl::UnavailableError(absl::StrCat(name, " lacks ",
                                             absl::StrJoin(missing, ", "),
                                             ": update NCCL to 2.7 or later"));
}

absl::Status CheckAllocator(std::string_view configuration) {
  const absl::string_view text(configuration.data(), configuration.size());
  for (absl::string_view option : absl::StrSplit(text, ',')) {
    const std::vector<absl::string_view> parts = absl::StrSplit(option, ':');
    if (parts.size() == 2 &&
        absl::StripAsciiWhitespace(parts[0]) == "backend" &&
        absl::StripAsciiWhitespace(parts[1]) == "cudaMallocAsync") {
      return absl::FailedPreconditionError(
          "NCCL cannot be used with the allocator cudaMallocAsync: it cannot "
          "reach that memory from another device. Remove "
          "backend:cudaMallocAsync from PYTORCH_CUDA_ALLOC_CONF (in ComfyUI: "
          "start with --disable-cuda-malloc); until then copies go pair by "
          "pair");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<NcclGroup>> NcclGroup::Open(
    NcclFunctions nccl, const CudaFunctions* cuda, std::vector<int> devices) {
  const std::set<int> distinct(devices.begin(), devices.end());
  if (devices.size() < 2 || distinct.size() != devices.size() ||
      *distinct.begin() < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("a group needs two or more different CUDA devices, not ",
                     devices.empty() ? "none" : Names(devices)));
  }
  std::unique_ptr<NcclGroup> group(
      new NcclGroup(std::move(nccl), cuda, std::move(devices)));
  const DeviceGuard guard(*cuda, group->devices_.front());
  if (!guard.status().ok()) return guard.status();
  std::vector<NcclFunctions::Comm> comms(group->devices_.size(), nullptr);
  const int code = group->nccl_.init_all(
      comms.data(), static_cast<int>(comms.size()), group->devices_.data());
  if (code != 0) return group->Failed("ncclCommInitAll", 0, code);
  group->comms_ = std::move(comms);
  return group;
}

NcclGroup::NcclGroup(NcclFunctions nccl, const CudaFunctions* cuda,
                     std::vector<int> devices)
    : nccl_(std::move(nccl)), cuda_(*cuda), devices_(std::move(devices)) {}

NcclGroup::~NcclGroup() {
  for (std::size_t rank = 0; rank < comms_.size(); ++rank) {
    const DeviceGuard guard(cuda_, devices_[rank]);
    if (broken_.empty()) {
      nccl_.destroy(comms_[rank]);
    } else {
      nccl_.abort(comms_[rank]);  // destroying would wait for ever
    }
  }
}

absl::StatusOr<int> NcclGroup::Rank(int device) const {
  const auto found = std::find(devices_.begin(), devices_.end(), device);
  if (found != devices_.end()) {
    return static_cast<int>(found - devices_.begin());
  }
  return absl::InvalidArgumentError(absl::StrCat(
      PlaceName(device), " is not in the group of ", Names(devices_)));
}

absl::Status NcclGroup::Failed(std::string_view what, std::int64_t bytes,
                               int code) {
  const char* text = nccl_.error_text(code);
  std::string message(what);
  if (bytes > 0) absl::StrAppend(&message, " of ", bytes, " bytes");
  absl::StrAppend(&message, " over ", Names(devices_),
                  " failed: ", text == nullptr ? "" : text);
  if (nccl_.last_error) {
    // NCCL keeps the last error of the thread for a null communicator.
    const char* detail = nccl_.last_error(nullptr);
    if (detail != nullptr && *detail != '\0') {
      absl::StrAppend(&message, " (", detail, ")");
    }
  }
  absl::StrAppend(&message,
                  ". Set NCCL_DEBUG=WARN and run again to see NCCL's reason.");
  return absl::InternalError(message);
}

absl::Status NcclGroup::Grouped(std::string_view what, std::int64_t bytes,
                                const std::function<int()>& calls) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!broken_.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the group over ", Names(devices_),
                     " ended with an error before: ", broken_));
  }
  int code = nccl_.group_start();
  if (code == 0) {
    code = calls();
    // Also after a failed call: an open group would swallow every later call.
    const int ended = nccl_.group_end();
    if (code == 0) code = ended;
  }
  if (code == 0) return absl::OkStatus();
  absl::Status failed = Failed(what, bytes, code);
  broken_ = std::string(failed.message());
  return failed;
}

absl::Status NcclGroup::CheckTargets(
    StreamOn source_stream, absl::Span<const NcclTarget> targets) const {
  std::set<int> seen = {source_stream.device};
  for (const NcclTarget& target : targets) {
    if (!seen.insert(target.stream.device).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(PlaceName(target.stream.device),
                       " takes part twice in one broadcast"));
    }
  }
  for (const int device : seen) {
    if (const auto rank = Rank(device); !rank.ok()) return rank.status();
  }
  if (seen.size() == devices_.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("a broadcast over ", Names(devices_), " needs all of them, ",
                   "but ", seen.size(), " take part"));
}

absl::Status NcclGroup::Broadcast(const void* source, StreamOn source_stream,
                                  absl::Span<const NcclTarget> targets,
                                  std::int64_t bytes) {
  absl::Status wrong = CheckTargets(source_stream, targets);
  if (!wrong.ok()) return wrong;
  if (bytes <= 0) {
    return bytes == 0 ? absl::OkStatus()
                      : absl::InvalidArgumentError("a negative size");
  }
  const int root = *Rank(source_stream.device);
  const auto join = [&](void* data, StreamOn stream) {
    const auto rank = static_cast<std::size_t>(*Rank(stream.device));
    const DeviceGuard guard(cuda_, stream.device);
    // Only the root's send buffer is read; in place there.
    return nccl_.broadcast(data, data, static_cast<std::size_t>(bytes),
                           NcclFunctions::kUint8, root, comms_[rank],
                           stream.handle);
  };
  return Grouped("ncclBroadcast", bytes, [&] {
    int code = join(const_cast<void*>(source), source_stream);
    for (const NcclTarget& target : targets) {
      if (code == 0) code = join(target.data, target.stream);
    }
    return code;
  });
}

absl::Status NcclGroup::CheckMessages(
    absl::Span<const NcclMessage> messages) const {
  for (const NcclMessage& message : messages) {
    const int from = message.source_stream.device;
    const int to = message.target_stream.device;
    for (const int device : {from, to}) {
      if (const auto rank = Rank(device); !rank.ok()) return rank.status();
    }
    if (from == to || message.bytes < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("a message of ", message.bytes, " bytes from ",
                       PlaceName(from), " to ", PlaceName(to), " is none"));
    }
  }
  return absl::OkStatus();
}

absl::Status NcclGroup::Exchange(absl::Span<const NcclMessage> messages) {
  if (absl::Status wrong = CheckMessages(messages); !wrong.ok()) return wrong;
  std::int64_t bytes = 0;
  for (const NcclMessage& message : messages) bytes += message.bytes;
  if (bytes == 0) return absl::OkStatus();
  return Grouped("ncclSend and ncclRecv", bytes, [&] {
    for (const NcclMessage& m : messages) {
      if (m.bytes == 0) continue;
      const int from = *Rank(m.source_stream.device);
      const int to = *Rank(m.target_stream.device);
      const auto size = static_cast<std::size_t>(m.bytes);
      int code = 0;
      {
        const DeviceGuard guard(cuda_, m.source_stream.device);
        code = nccl_.send(m.source, size, NcclFunctions::kUint8, to,
                          comms_[static_cast<std::size_t>(from)],
                          m.source_stream.handle);
      }
      if (code == 0) {
        const DeviceGuard guard(cuda_, m.target_stream.device);
        code = nccl_.receive(m.target, size, NcclFunctions::kUint8, from,
                             comms_[static_cast<std::size_t>(to)],
                             m.target_stream.handle);
      }
      if (code != 0) return code;
    }
    return 0;
  });
}

}  // namespace distorch
