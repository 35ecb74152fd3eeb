// SPDX-License-Identifier: Apache-2.0
// distorch/transfer for Python: addresses, devices and streams as integers; a
// device of -1 is the host. The lock is released around every call: all of them
// may wait for a device.
#include <pybind11/pybind11.h>
#include <pybind11/typing.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "bindings/bindings.h"
#include "bindings/names.h"
#include "bindings/status.h"
#include "distorch/transfer/router.h"

namespace distorch::bindings {
namespace {

namespace py = pybind11;

template <typename Call>
auto Unlocked(Call call) {
  const py::gil_scoped_release release;
  return call();
}

Way WayOf(const std::string& name) {
  for (const Way way : {Way::kDirect, Way::kPeer, Way::kDriver, Way::kStaged}) {
    if (name == WayName(way)) return way;
  }
  throw py::value_error("unknown way '" + name +
                        "'; expected 'direct', 'peer', 'driver' or 'staged'");
}

std::shared_ptr<Router> MakeRouterShim(const std::string& runtime,
                                       const std::string& driver,
                                       std::int64_t sample_bytes,
                                       std::int64_t chunk, bool hip,
                                       double patience) {
  if (sample_bytes < 1 || chunk < 1) {
    throw py::value_error("sample_bytes and chunk must be at least 1");
  }
  return std::make_shared<Router>(Value(Unlocked([&] {
                                    return hip ? LoadHip(runtime, patience)
                                               : LoadCuda(runtime, driver,
                                                          patience);
                                  })),
                                  Router::Clock(), sample_bytes, chunk);
}

// "way", "gbps", "peer_access", and "candidates": (way, GB/s, error) each
py::typing::Dict<py::str, py::object> ChooseShim(Router& router, int source,
                                                 int target) {
  const Choice choice =
      Value(Unlocked([&] { return router.Choose(source, target); }));
  py::list candidates;
  for (const MeasuredWay& each : choice.candidates) {
    candidates.append(
        py::make_tuple(std::string(WayName(each.way)), each.gbps, each.error));
  }
  py::typing::Dict<py::str, py::object> result;
  result["way"] = std::string(WayName(choice.way));
  result["gbps"] = choice.gbps;
  result["peer_access"] = choice.peer_access;
  result["candidates"] = candidates;
  return result;
}

void AdoptShim(Router& router, int source, int target, const std::string& way,
               double gbps) {
  const Way chosen = WayOf(way);
  Check(Unlocked([&] { return router.Adopt(source, target, chosen, gbps); }));
}

std::string CopyShim(Router& router, std::uintptr_t target, int target_device,
                     std::uintptr_t source, int source_device,
                     std::int64_t bytes, int stream_device,
                     std::uintptr_t stream) {
  const CopyRequest request{Pointer(target), target_device,
                            Pointer(source), source_device,
                            bytes,           {stream_device, Pointer(stream)}};
  return std::string(
      WayName(Value(Unlocked([&] { return router.Copy(request); }))));
}

double MeasureShim(Router& router, int source, int target,
                   const std::string& way, bool pinned, std::int64_t bytes,
                   int repeats) {
  const Way chosen = WayOf(way);
  const auto pages = pinned ? HostPages::kPinned : HostPages::kPageable;
  return Value(Unlocked([&] {
    return router.Measure(source, target, chosen, pages, bytes, repeats);
  }));
}

}  // namespace

void BindTransfer(py::module_& module) {
  py::class_<Router, std::shared_ptr<Router>>(module, "TransferRouter")
      .def(py::init(&MakeRouterShim), py::arg("runtime") = "",
           py::arg("driver") = "",
           py::arg("sample_bytes") = Router::kSampleBytes,
           py::arg("chunk") = StagedTransfer::kChunk, py::arg("hip") = false,
           py::arg("patience") = CudaFunctions().patience,
           "patience: seconds that the host waits at most for a device")
      .def("device_count",
           [](const Router& router) { return Value(router.DeviceCount()); })
      .def("choose", &ChooseShim, py::arg("source"), py::arg("target"))
      .def("adopt", &AdoptShim, py::arg("source"), py::arg("target"),
           py::arg("way"), py::arg("gbps"))
      .def("copy", &CopyShim, py::arg("target"), py::arg("target_device"),
           py::arg("source"), py::arg("source_device"), py::arg("bytes"),
           py::arg("stream_device"), py::arg("stream"))
      .def("measure", &MeasureShim, py::arg("source"), py::arg("target"),
           py::arg("way"), py::arg("pinned"), py::arg("bytes"),
           py::arg("repeats"));
}

}  // namespace distorch::bindings
