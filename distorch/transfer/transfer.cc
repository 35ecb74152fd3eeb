// SPDX-License-Identifier: Apache-2.0
#include "distorch/transfer/transfer.h"

#include <cstddef>
#include <string>

#include "absl/strings/str_cat.h"

namespace distorch {
namespace {

constexpr int kPeerAccessAlreadyEnabled = 704;

std::string Route(const CopyRequest& request) {
  return absl::StrCat("from ", PlaceName(request.source_device), " to ",
                      PlaceName(request.target_device));
}

bool EnableOneWay(const CudaFunctions& cuda, int device, int peer) {
  int can = 0;
  if (cuda.can_access_peer(&can, device, peer) != 0 || can == 0) return false;
  const DeviceGuard guard(cuda, device);
  if (!guard.status().ok()) return false;
  const int code = cuda.enable_peer(peer, 0);
  if (code == 0) return true;
  cuda.take_last_error();  // neither outcome is an error of a later call
  return code == kPeerAccessAlreadyEnabled;
}

}  // namespace

std::string_view WayName(Way way) {
  switch (way) {
    case Way::kDirect:
      return "direct";
    case Way::kPeer:
      return "peer";
    case Way::kDriver:
      return "driver";
    case Way::kStaged:
      return "staged";
  }
  return "";
}

absl::Status CheckRequest(const CopyRequest& request) {
  if (request.bytes < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("a copy of ", request.bytes, " bytes is none"));
  }
  if (request.bytes > 0 &&
      (request.target == nullptr || request.source == nullptr)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a copy ", Route(request), " needs two addresses"));
  }
  if (request.source_device < 0 && request.target_device < 0) {
    return absl::InvalidArgumentError(
        "a copy from cpu to cpu has no device: use memcpy");
  }
  const int on = request.stream.device;
  if (on < 0 || (on != request.source_device && on != request.target_device)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a copy ", Route(request),
                     " needs a stream of one of them, not of ", PlaceName(on)));
  }
  return absl::OkStatus();
}

absl::Status DirectTransfer::Copy(const CopyRequest& request) {
  if (absl::Status wrong = CheckRequest(request); !wrong.ok()) return wrong;
  if (request.bytes == 0) return absl::OkStatus();
  const DeviceGuard guard(cuda_, request.stream.device);
  if (!guard.status().ok()) return guard.status();
  const int code = cuda_.copy(
      request.target, request.source, static_cast<std::size_t>(request.bytes),
      CudaFunctions::kMemcpyDefault, request.stream.handle);
  if (code == 0) return absl::OkStatus();
  return CudaFailure(cuda_, "cudaMemcpyAsync", Route(request),
                     request.stream.device, request.bytes, code);
}

absl::Status PeerTransfer::Copy(const CopyRequest& request) {
  if (absl::Status wrong = CheckRequest(request); !wrong.ok()) return wrong;
  if (request.source_device < 0 || request.target_device < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("a peer copy needs two devices, not ", Route(request)));
  }
  if (request.bytes == 0) return absl::OkStatus();
  const DeviceGuard guard(cuda_, request.stream.device);
  if (!guard.status().ok()) return guard.status();
  const int code = cuda_.copy_peer(request.target, request.target_device,
                                   request.source, request.source_device,
                                   static_cast<std::size_t>(request.bytes),
                                   request.stream.handle);
  if (code == 0) return absl::OkStatus();
  return CudaFailure(cuda_, "cudaMemcpyPeerAsync", Route(request),
                     request.stream.device, request.bytes, code);
}

bool EnablePeerAccess(const CudaFunctions& cuda, int source, int target) {
  // Both: which of the two drives the copy depends on the stream.
  const bool forward = EnableOneWay(cuda, source, target);
  const bool backward = EnableOneWay(cuda, target, source);
  return forward && backward;
}

}  // namespace distorch
