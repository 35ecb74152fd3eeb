// SPDX-License-Identifier: Apache-2.0
// distorch/placement for Python. A table is a Python object with the methods
// of `distorch.tables.TensorTable`; it is an argument of each call, so nothing
// here holds a model. What its methods raise comes out of the call unchanged.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/status.h"
#include "distorch/placement/placement.h"
#include "distorch/placement/slab_layout.h"

namespace distorch::bindings {
namespace {

namespace py = pybind11;

class PythonTable : public TensorTable {
 public:
  explicit PythonTable(const py::object& table)
      : table_(table),
        make_(table.attr("make")),
        hang_(table.attr("hang")),
        progress_(table.attr("progress")) {}

  Made Make(uint32_t i, uint32_t device, From from,
            const SlabPlace& place) override {
    std::vector<int64_t> offsets;
    for (const Bytes offset : place.offsets) offsets.push_back(offset.value());
    const auto [id, factors] = py::cast<std::pair<MadeId, int64_t>>(make_(
        i, device, from == From::kCurrent, place.slab, std::move(offsets)));
    return {id, Bytes(factors)};
  }
  void Hang(uint32_t i, MadeId made) override { hang_(i, made); }
  void Drop(MadeId made) noexcept override { CallAnyway("drop", made); }
  SlabId MakeSlab(uint32_t device, Bytes bytes) override {
    return py::cast<SlabId>(table_.attr("make_slab")(device, bytes.value()));
  }
  void SealSlab(SlabId slab) noexcept override {
    CallAnyway("seal_slab", slab);
  }
  std::vector<int64_t> ReadBack() override {
    return py::cast<std::vector<int64_t>>(table_.attr("read_back")());
  }
  std::string PlaceOf(uint32_t i) override {
    return py::cast<std::string>(table_.attr("place_of")(i));
  }
  bool Written(uint32_t i) override {
    return py::cast<bool>(table_.attr("written")(i));
  }
  void KeepWritten(uint32_t i) override { table_.attr("keep_written")(i); }
  void Progress(uint32_t done_blocks, uint32_t blocks, Bytes done,
                Bytes all) override {
    if (!progress_.is_none()) {
      progress_(done_blocks, blocks, done.value(), all.value());
    }
  }

 private:
  // Letting go may not fail; an interrupt that arrives there is told of, no
  // more.
  void CallAnyway(const char* method, uint64_t id) noexcept {
    try {
      table_.attr(method)(id);
    } catch (py::error_already_set& error) {
      error.discard_as_unraisable(method);
    } catch (...) {
    }
  }

  py::object table_, make_, hang_, progress_;
};

// (name, group, stays, in_slab)
using BlockRow = std::tuple<std::string, std::string, bool, bool>;
// (block, same, device, bytes of the parts, as_found, from_bytes)
using TensorRow =
    std::tuple<uint32_t, uint32_t, uint32_t, std::vector<int64_t>, bool, bool>;

Placement MakePlacement(const std::vector<std::string>& names, uint32_t compute,
                        const std::vector<BlockRow>& block_rows,
                        const std::vector<TensorRow>& tensor_rows) {
  std::vector<DeviceId> devices;
  for (const std::string& name : names) {
    const std::optional<DeviceId> device = DeviceId::FromString(name);
    if (!device) throw py::value_error("no device is called '" + name + "'");
    devices.push_back(*device);
  }
  std::vector<PlacedBlock> blocks;
  blocks.reserve(block_rows.size());
  for (const auto& [name, group, stays, in_slab] : block_rows) {
    blocks.push_back({name, group, stays, in_slab});
  }
  std::vector<TensorInfo> tensors;
  tensors.reserve(tensor_rows.size());
  for (const auto& [block, same, device, parts, as_found, from_bytes] :
       tensor_rows) {
    if (block >= blocks.size() || same > tensors.size() ||
        device >= devices.size()) {
      throw py::index_error("a tensor's block, first name or device");
    }
    std::vector<Bytes> sizes;
    for (const int64_t part : parts) sizes.emplace_back(part);
    tensors.push_back(
        {block, same, device, std::move(sizes), as_found, from_bytes});
  }
  if (compute >= devices.size()) throw py::index_error("the compute device");
  return {std::move(devices), compute, std::move(blocks), std::move(tensors)};
}

void BringShim(Placement& placement, const py::object& table,
               std::vector<bool> patched, std::vector<bool> changed,
               bool give_way, std::optional<int64_t> host_free) {
  PythonTable adapter(table);
  Check(placement.Bring(adapter,
                        {std::move(patched), std::move(changed), give_way,
                         host_free ? Bytes(*host_free) : Bytes::Max()}));
}

py::typing::Dict<py::typing::Tuple<py::str, py::str>, std::int64_t>
TransfersShim(const Placement& placement) {
  py::typing::Dict<py::typing::Tuple<py::str, py::str>, std::int64_t> result;
  for (const auto& [leg, bytes] : placement.transfers()) {
    const auto& devices = placement.devices();
    result[py::make_tuple(devices[leg.first].ToString(),
                          devices[leg.second].ToString())] = bytes.value();
  }
  return result;
}

py::typing::Dict<py::str, std::int64_t> BytesShim(const Placement& placement) {
  py::typing::Dict<py::str, std::int64_t> result;
  const std::vector<Bytes> bytes = placement.BytesPerDevice();
  for (size_t d = 0; d < bytes.size(); ++d) {
    if (bytes[d] > Bytes()) {
      result[py::str(placement.devices()[d].ToString())] = bytes[d].value();
    }
  }
  return result;
}

std::pair<std::vector<std::vector<int64_t>>, int64_t> LayOutShim(
    const std::vector<std::vector<int64_t>>& tensors) {
  std::vector<std::vector<Bytes>> parts;
  for (const auto& sizes : tensors) {
    parts.emplace_back(sizes.begin(), sizes.end());
  }
  const SlabLayout layout = LayOut(parts);
  std::vector<std::vector<int64_t>> offsets;
  for (const auto& places : layout.offsets) {
    auto& row = offsets.emplace_back();
    for (const Bytes place : places) row.push_back(place.value());
  }
  return {std::move(offsets), layout.bytes.value()};
}

}  // namespace

void BindPlacement(py::module_& module) {
  module.attr("SLAB_ALIGNMENT") = kSlabAlignment.value();
  module.attr("HOST_PAGE") = kHostPage.value();
  module.def("lay_out", &LayOutShim, py::arg("tensors"),
             "Where the parts of tensors, given by their bytes, begin in a "
             "slab, and its bytes.");
  py::class_<Placement>(module, "Placement",
                        "Where the blocks of one model lie; see "
                        "distorch/placement/placement.h.")
      .def(py::init(&MakePlacement), py::arg("devices"), py::arg("compute"),
           py::arg("blocks"), py::arg("tensors"))
      .def(
          "assign",
          [](Placement& placement, std::vector<uint32_t> devices) {
            Check(placement.Assign(std::move(devices)));
          },
          py::arg("device_of_block"))
      .def("bring", &BringShim, py::arg("table"), py::arg("patched"),
           py::arg("changed"), py::arg("give_way") = false,
           py::arg("host_free") = py::none())
      .def(
          "spill",
          [](Placement& placement, const py::object& table, uint32_t device,
             int64_t wanted) {
            PythonTable adapter(table);
            return placement.Spill(adapter, device, Bytes(wanted)).value();
          },
          py::arg("table"), py::arg("device"), py::arg("wanted"))
      .def(
          "fit",
          [](Placement& placement, int64_t budget) {
            return placement.Fit(Bytes(budget)).value();
          },
          py::arg("budget"))
      .def("give_back", &Placement::Return, py::arg("block"))
      .def(
          "release",
          [](Placement& placement, const py::object& table) {
            PythonTable adapter(table);
            placement.Release(adapter);
          },
          py::arg("table"))
      .def(
          "verify",
          [](const Placement& placement, const py::object& table) {
            PythonTable adapter(table);
            Check(placement.Verify(adapter));
          },
          py::arg("table"))
      .def("target", &Placement::Target, py::arg("block"))
      .def("spilled", &Placement::spilled, py::arg("block"))
      .def("patched", &Placement::patched, py::arg("tensor"))
      .def("made", &Placement::made, py::arg("tensor"))
      .def("bytes_per_device", &BytesShim)
      .def_property_readonly("transfers", &TransfersShim)
      .def_property_readonly("factor_bytes", [](const Placement& placement) {
        return placement.factor_bytes().value();
      });
}

}  // namespace distorch::bindings
