// SPDX-License-Identifier: Apache-2.0
// distorch/transfer for Python: addresses, devices and streams as integers; a
// device of -1 is the host. The lock is released around every call: all of them
// may wait for a device.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/names.h"
#include "bindings/status.h"
#include "distorch/transfer/nccl.h"
#include "distorch/transfer/router.h"

namespace distorch::bindings {
namespace {

namespace py = pybind11;

// (address, device, stream)
using End = std::tuple<std::uintptr_t, int, std::uintptr_t>;
// (source address, device, stream, target address, device, stream, bytes)
using Message = std::tuple<std::uintptr_t, int, std::uintptr_t, std::uintptr_t,
                           int, std::uintptr_t, std::int64_t>;

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
                                       std::int64_t chunk, bool hip) {
  if (sample_bytes < 1 || chunk < 1) {
    throw py::value_error("sample_bytes and chunk must be at least 1");
  }
  return std::make_shared<Router>(Value(Unlocked([&] {
                                    return hip ? LoadHip(runtime)
                                               : LoadCuda(runtime, driver);
                                  })),
                                  Router::Clock(), sample_bytes, chunk);
}

py::dict ChooseShim(Router& router, int source, int target) {
  const Choice choice =
      Value(Unlocked([&] { return router.Choose(source, target); }));
  py::list candidates;
  for (const MeasuredWay& each : choice.candidates) {
    candidates.append(
        py::make_tuple(std::string(WayName(each.way)), each.gbps, each.error));
  }
  py::dict result;
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

// An NcclGroup with the functions that must outlive it.
class PythonNccl {
 public:
  PythonNccl(std::vector<int> devices, const std::string& nccl,
             const std::string& runtime, const std::string& driver)
      : cuda_(Value(Unlocked([&] { return LoadCuda(runtime, driver); }))) {
    NcclFunctions functions = Value(Unlocked([&] { return LoadNccl(nccl); }));
    group_ = Value(Unlocked([&] {
      return NcclGroup::Open(std::move(functions), &cuda_, std::move(devices));
    }));
  }

  const std::vector<int>& devices() const { return group_->devices(); }

  void Broadcast(const End& source, const std::vector<End>& targets,
                 std::int64_t bytes) {
    std::vector<NcclTarget> ends;
    for (const auto& [data, device, stream] : targets) {
      ends.push_back({Pointer(data), {device, Pointer(stream)}});
    }
    const auto& [data, device, stream] = source;
    const StreamOn on{device, Pointer(stream)};
    void* from = Pointer(data);
    Check(Unlocked([&] { return group_->Broadcast(from, on, ends, bytes); }));
  }

  void Exchange(const std::vector<Message>& messages) {
    std::vector<NcclMessage> all;
    for (const auto& [from, from_device, from_stream, to, to_device, to_stream,
                      bytes] : messages) {
      all.push_back({Pointer(from),
                     {from_device, Pointer(from_stream)},
                     Pointer(to),
                     {to_device, Pointer(to_stream)},
                     bytes});
    }
    Check(Unlocked([&] { return group_->Exchange(all); }));
  }

 private:
  CudaFunctions cuda_;
  std::unique_ptr<NcclGroup> group_;
};

}  // namespace

void BindTransfer(py::module_& module) {
  py::class_<Router, std::shared_ptr<Router>>(module, "TransferRouter")
      .def(py::init(&MakeRouterShim), py::arg("runtime") = "",
           py::arg("driver") = "",
           py::arg("sample_bytes") = Router::kSampleBytes,
           py::arg("chunk") = StagedTransfer::kChunk, py::arg("hip") = false)
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
  py::class_<PythonNccl>(module, "NcclGroup")
      .def(py::init<std::vector<int>, const std::string&, const std::string&,
                    const std::string&>(),
           py::arg("devices"), py::arg("nccl") = "", py::arg("runtime") = "",
           py::arg("driver") = "")
      .def_property_readonly("devices", &PythonNccl::devices)
      .def("broadcast", &PythonNccl::Broadcast, py::arg("source"),
           py::arg("targets"), py::arg("bytes"))
      .def("exchange", &PythonNccl::Exchange, py::arg("messages"));
  module.def(
      "check_nccl_allocator",
      [](const std::string& text) { Check(CheckAllocator(text)); },
      py::arg("configuration"),
      "Raises RuntimeError where the allocator's configuration forbids NCCL.");
}

}  // namespace distorch::bindings
