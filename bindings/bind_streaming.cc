// SPDX-License-Identifier: Apache-2.0
// distorch/execution/byte_streamer.h and distorch/transfer/host_pinner.h for
// Python: addresses, devices and streams as integers; a device of -1 is the
// host. A streamed group costs one call before it computes and one after it.
//
// The lock is released while CUDA is called and while copies are waited for. An
// object that owns memory is let go with the lock held, by whatever thread.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/names.h"
#include "bindings/status.h"
#include "bindings/tensor_swap.h"
#include "distorch/execution/byte_streamer.h"
#include "distorch/transfer/host_pinner.h"
#include "distorch/transfer/router.h"

namespace distorch::bindings {
namespace {

namespace py = pybind11;

// (address, device, where it begins in a slot, bytes, what pins it or None)
using Part = std::tuple<std::uintptr_t, int, std::int64_t, std::int64_t,
                        std::optional<std::shared_ptr<PinnedSlab>>>;

// Owns a Python object from C++, on any thread.
std::shared_ptr<void> Owned(py::object object) {
  return {new py::object(std::move(object)), [](void* held) {
            // When the interpreter has gone, so has the object.
            if (Py_IsInitialized() == 0) return;
            const py::gil_scoped_acquire lock;
            delete static_cast<py::object*>(held);
          }};
}

// `budget` has limit(), used() and add(bytes).
PinBudget BudgetOf(const py::object& budget) {
  auto held = std::static_pointer_cast<py::object>(Owned(budget));
  const auto ask = [held](const char* what) {
    return [held, what] {
      const py::gil_scoped_acquire lock;
      return held->attr(what)().cast<std::int64_t>();
    };
  };
  return {ask("limit"), ask("used"), [held](std::int64_t bytes) {
            const py::gil_scoped_acquire lock;
            held->attr("add")(bytes);
          }};
}

class PythonPinner {
 public:
  PythonPinner(std::shared_ptr<Router> router, int device,
               const py::object& budget, std::int64_t cap, std::int64_t segment)
      : router_(std::move(router)),
        pinner_(&router_->cuda(), device, BudgetOf(budget), cap, segment) {}

  std::shared_ptr<PinnedSlab> Pin(std::uintptr_t address, std::int64_t bytes,
                                  const std::vector<std::int64_t>& borders,
                                  py::object owner) {
    // The router, whose functions unregister, lives as long as the slab.
    auto both = std::make_shared<
        std::pair<std::shared_ptr<void>, std::shared_ptr<Router>>>(
        Owned(std::move(owner)), router_);
    const py::gil_scoped_release release;
    return std::const_pointer_cast<PinnedSlab>(
        pinner_.Pin(Pointer(address), bytes, borders, std::move(both)));
  }
  void KeepOnly(const std::vector<std::uintptr_t>& kept) {
    std::vector<const void*> addresses;
    for (const std::uintptr_t each : kept) addresses.push_back(Pointer(each));
    const py::gil_scoped_release release;
    pinner_.KeepOnly(addresses);
  }
  std::int64_t pinned() const { return pinner_.pinned(); }
  std::string trouble() const { return pinner_.trouble(); }

 private:
  std::shared_ptr<Router> router_;
  HostPinner pinner_;
};

std::vector<std::pair<std::uintptr_t, std::int64_t>> SegmentsOf(
    const PinnedSlab& slab) {
  std::vector<std::pair<std::uintptr_t, std::int64_t>> found;
  for (const PinnedSegment& each : slab.segments()) {
    found.emplace_back(reinterpret_cast<std::uintptr_t>(each.begin),
                       each.bytes);
  }
  return found;
}

class PythonStreamer {
 public:
  PythonStreamer(std::shared_ptr<Router> router, int device,
                 const std::vector<std::uintptr_t>& slots,
                 std::vector<std::vector<Part>> groups, py::object owner,
                 std::uintptr_t compute, std::int64_t chunk)
      : router_(std::move(router)) {
    ByteStreamer::Options options;
    // The router, whose functions wait, lives as long as what they wait for.
    options.owner = std::make_shared<
        std::pair<std::shared_ptr<void>, std::shared_ptr<Router>>>(
        Owned(std::move(owner)), router_);
    options.cuda = &router_->cuda();
    options.router = router_.get();
    options.device = device;
    options.chunk = chunk;
    for (const std::uintptr_t slot : slots) {
      options.slots.push_back(Pointer(slot));
    }
    std::vector<ByteGroup> all;
    for (std::vector<Part>& group : groups) {
      ByteGroup& added = all.emplace_back();
      for (auto& [address, source, at, bytes, slab] : group) {
        added.parts.push_back({Pointer(address), source, at, bytes,
                               std::move(slab).value_or(nullptr)});
      }
    }
    groups.clear();
    auto made = [&] {
      const py::gil_scoped_release release;
      return ByteStreamer::Make(std::move(options), std::move(all),
                                Pointer(compute));
    }();
    streamer_ = Value(std::move(made));
  }
  PythonStreamer(const PythonStreamer&) = delete;
  PythonStreamer& operator=(const PythonStreamer&) = delete;
  ~PythonStreamer() { Close(); }

  void Close() {
    const py::gil_scoped_release release;
    streamer_.reset();
  }

  bool Enter(int group, std::uintptr_t compute, TensorSwap& swap) {
    const absl::StatusOr<int> slot = [&] {
      const py::gil_scoped_release release;
      return Streamer().Enter(group, Pointer(compute));
    }();
    if (!slot.ok()) Check(slot.status());
    if (swap.Enter(static_cast<std::size_t>(*slot))) return true;
    LeaveOnly(group, compute);
    return false;
  }
  void Leave(int group, std::uintptr_t compute, TensorSwap& swap) {
    swap.Leave();
    LeaveOnly(group, compute);
  }
  void BeginStep() { Streamer().BeginStep(); }
  void Reset() {
    const py::gil_scoped_release release;
    Streamer().Reset();
  }
  auto Counters() { return AsDict(Streamer().counters()); }
  std::vector<int> InSlots() { return Streamer().in_slots(); }
  std::vector<int> Order() { return Streamer().order(); }
  std::int64_t BytesCopied() { return Streamer().bytes_copied(); }
  std::string Trouble() { return Streamer().trouble(); }
  std::size_t Copies(int group) { return Streamer().copies(group); }

 private:
  void LeaveOnly(int group, std::uintptr_t compute) {
    const absl::Status left = [&] {
      const py::gil_scoped_release release;
      return Streamer().Leave(group, Pointer(compute));
    }();
    Check(left);
  }
  ByteStreamer& Streamer() {
    if (streamer_ == nullptr) throw std::runtime_error("it is closed");
    return *streamer_;
  }

  std::shared_ptr<Router> router_;
  std::unique_ptr<ByteStreamer> streamer_;
};

}  // namespace

void BindStreaming(py::module_& module) {
  py::class_<PinnedSlab, std::shared_ptr<PinnedSlab>>(
      module, "PinnedSlab", "Host memory that is pinned, in part or whole.")
      .def_property_readonly("segments", &SegmentsOf,
                             "(address, bytes) of each registration, rising");
  py::class_<PythonPinner>(module, "HostPinner")
      .def(py::init<std::shared_ptr<Router>, int, const py::object&,
                    std::int64_t, std::int64_t>(),
           py::arg("router"), py::arg("device"), py::arg("budget"),
           py::arg("cap") = HostPinner::kNoCap,
           py::arg("segment") = HostPinner::kSegment)
      .def("pin", &PythonPinner::Pin, py::arg("address"), py::arg("bytes"),
           py::arg("borders"), py::arg("owner"))
      .def("keep_only", &PythonPinner::KeepOnly, py::arg("addresses"))
      .def_property_readonly("pinned", &PythonPinner::pinned)
      .def_property_readonly("trouble", &PythonPinner::trouble);
  py::class_<PythonStreamer>(
      module, "ByteStreamer",
      "Streams groups of bytes into slots of a CUDA device; for each, one call "
      "before it computes and one after it.")
      .def(py::init<std::shared_ptr<Router>, int,
                    const std::vector<std::uintptr_t>&,
                    std::vector<std::vector<Part>>, py::object, std::uintptr_t,
                    std::int64_t>(),
           py::arg("router"), py::arg("device"), py::arg("slots"),
           py::arg("groups"), py::arg("owner"), py::arg("compute"),
           py::arg("chunk") = StagedTransfer::kChunk)
      .def("enter", &PythonStreamer::Enter, py::arg("group"),
           py::arg("compute"), py::arg("swap"),
           "Hang the group's tensors of its slot in; False, with nothing "
           "changed, if a table holds another tensor than the stored one.")
      .def("leave", &PythonStreamer::Leave, py::arg("group"),
           py::arg("compute"), py::arg("swap"))
      .def("begin_step", &PythonStreamer::BeginStep)
      .def("reset", &PythonStreamer::Reset)
      .def("close", &PythonStreamer::Close)
      .def("in_slots", &PythonStreamer::InSlots)
      .def("copies", &PythonStreamer::Copies, py::arg("group"))
      .def_property_readonly("order", &PythonStreamer::Order)
      .def_property_readonly("counters", &PythonStreamer::Counters)
      .def_property_readonly("bytes_copied", &PythonStreamer::BytesCopied)
      .def_property_readonly("trouble", &PythonStreamer::Trouble);
}

}  // namespace distorch::bindings
