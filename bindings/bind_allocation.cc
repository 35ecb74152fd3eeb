// SPDX-License-Identifier: Apache-2.0
// The table of what `distorch._C` offers of allocation/. The Python package
// wraps it in distorch/allocation.py, which turns ParseError and PlanFault into
// exceptions.
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "allocation/block_inventory.h"
#include "allocation/bytes.h"
#include "allocation/parser.h"
#include "allocation/plan.h"
#include "allocation/printer.h"
#include "bindings/bindings.h"
#include "bindings/names.h"

namespace distorch::bindings {
namespace {

namespace py = pybind11;

std::vector<DeviceId> DevicesFrom(const std::vector<std::string>& names) {
  std::vector<DeviceId> devices;
  devices.reserve(names.size());
  for (const std::string& name : names) devices.push_back(DeviceFrom(name));
  return devices;
}

std::optional<Bytes> Known(std::optional<int64_t> bytes) {
  return bytes ? std::optional(Bytes(*bytes)) : std::nullopt;
}

std::optional<int64_t> Number(std::optional<Bytes> bytes) {
  return bytes ? std::optional(bytes->value()) : std::nullopt;
}

Spec VirtualVramShim(const std::string& compute, int64_t bytes,
                     const std::vector<std::string>& donors) {
  if (bytes < 0 || donors.empty()) {
    throw std::invalid_argument("0 bytes or more, and at least one donor");
  }
  return Spec{VirtualVram{Bytes(bytes), DevicesFrom(donors)},
              DeviceFrom(compute)};
}

std::vector<std::string> DevicesShim(const Spec& spec) {
  std::vector<std::string> names;
  for (const DeviceId& device : spec.Devices()) {
    names.push_back(device.ToString());
  }
  return names;
}

Order OrderFrom(const std::string& text) {
  if (text == "auto") return Order::kAuto;
  if (text == "contiguous") return Order::kContiguous;
  if (text == "strided") return Order::kStrided;
  throw std::invalid_argument("unknown order '" + text +
                              "'; expected auto, contiguous or strided");
}

std::variant<Spec, ParseError> ParseShim(const std::string& text,
                                         const std::vector<std::string>& names,
                                         std::vector<std::string> kinds) {
  ParseOptions options;
  options.extra_kinds = std::move(kinds);
  options.devices = DevicesFrom(names);
  ParseError error;
  absl::StatusOr<Spec> spec = ParseSpec(text, options, &error);
  if (spec.ok()) return *std::move(spec);
  return error;
}

std::vector<Block> BlocksShim(
    const std::vector<std::pair<std::string, int64_t>>& tensors) {
  std::vector<TensorEntry> entries;
  entries.reserve(tensors.size());
  for (const auto& [name, bytes] : tensors) {
    entries.push_back({name, Bytes(bytes)});
  }
  return BlocksOfTensors(entries);
}

void BindInputs(py::module_& module) {
  py::class_<Block>(module, "Block",
                    "The unit of placement: a module with its own parameters.")
      .def(py::init([](std::string name, int64_t bytes, std::string group,
                       std::string pinned, std::string tied, bool patched,
                       std::string layer_type, int64_t cost) {
             return Block{std::move(name),       Bytes(bytes),
                          std::move(group),      std::move(pinned),
                          std::move(tied),       patched,
                          std::move(layer_type), cost};
           }),
           py::arg("name"), py::arg("bytes"), py::arg("group") = "",
           py::arg("pinned") = "", py::arg("tied") = "",
           py::arg("patched") = false, py::arg("layer_type") = "",
           py::arg("cost") = 0)
      .def_readonly("name", &Block::name)
      .def_property_readonly("bytes",
                             [](const Block& b) { return b.bytes.value(); })
      .def_readonly("group", &Block::group)
      .def_readonly("pinned", &Block::pinned)
      .def_readonly("tied", &Block::tied)
      .def_readonly("patched", &Block::patched)
      .def_readonly("layer_type", &Block::layer_type)
      .def_readonly("cost", &Block::cost)
      .def("__repr__", [](const Block& b) {
        return "Block('" + b.name + "', " + std::to_string(b.bytes.value()) +
               ")";
      });
  py::class_<Device>(module, "Device", "A row of the table of devices.")
      .def(py::init([](const std::string& device, std::optional<int64_t> total,
                       std::optional<int64_t> free, int64_t reserve,
                       double link_gbps) {
             return Device{DeviceFrom(device), Known(total), Known(free),
                           Bytes(reserve), link_gbps};
           }),
           py::arg("device"), py::arg("total"), py::arg("free"),
           py::arg("reserve") = 0, py::arg("link_gbps") = 0.0,
           "None stands for memory that nobody knows.")
      .def_property_readonly("device",
                             [](const Device& d) { return d.id.ToString(); })
      .def_property_readonly("total",
                             [](const Device& d) { return Number(d.total); })
      .def_property_readonly("free",
                             [](const Device& d) { return Number(d.free); })
      .def_property_readonly("reserve",
                             [](const Device& d) { return d.reserve.value(); })
      .def_readonly("link_gbps", &Device::link_gbps)
      .def("__repr__", [](const Device& d) {
        const auto text = [](std::optional<Bytes> bytes) {
          return bytes ? std::to_string(bytes->value()) : "None";
        };
        return "Device('" + d.id.ToString() + "', total=" + text(d.total) +
               ", free=" + text(d.free) + ")";
      });
  py::class_<PlanOptions>(module, "Options", "How to plan.")
      .def(py::init([](const std::string& order, bool strict,
                       std::optional<uint32_t> slots) {
             return PlanOptions{OrderFrom(order), strict,
                                slots.value_or(kSlotsForEveryLink)};
           }),
           py::arg("order") = "auto", py::arg("strict") = false,
           py::arg("slots") = 0,
           "`slots`: staging slots at most; 0: nothing is streamed, None: as "
           "many as the links can make use of.")
      .def_readonly("strict", &PlanOptions::strict);
}

void BindSpec(py::module_& module) {
  py::class_<Spec>(module, "Spec", "What an allocation string asks for.")
      .def("__str__", &FormatSpec)
      .def("__repr__",
           [](const Spec& spec) { return "Spec('" + FormatSpec(spec) + "')"; })
      .def("__eq__", [](const Spec& a, const Spec& b) { return a == b; })
      .def("__hash__",
           [](const Spec& spec) { return py::hash(py::str(FormatSpec(spec))); })
      .def_property_readonly(
          "compute",
          [](const Spec& spec) {
            return spec.compute.empty() ? "" : spec.compute.ToString();
          },
          "The compute device that the string names, or ''.")
      .def_property_readonly("devices", &DevicesShim,
                             "Every device it names, once, in its order.")
      .def_property_readonly("uses_every_device", &Spec::UsesEveryDevice,
                             "Whether a plan may use devices it does not name.")
      .def_static(
          "whole",
          [](const std::string& compute) {
            return Spec::Whole(DeviceFrom(compute));
          },
          py::arg("compute"), "The whole model on one device.")
      .def_static("virtual_vram", &VirtualVramShim, py::arg("compute"),
                  py::arg("bytes"), py::arg("donors"),
                  "At most so many bytes leave the compute device.")
      .def(
          "on",
          [](const Spec& spec, const std::string& compute) {
            return spec.On(DeviceFrom(compute));
          },
          py::arg("compute"), "The same, computed on this device.")
      .def(
          "without",
          [](const Spec& spec, const std::vector<std::string>& devices) {
            return spec.Without(DevicesFrom(devices));
          },
          py::arg("devices"),
          "The same where these devices are not there: see allocation/spec.h.");
  py::class_<ParseError>(module, "ParseError", "Where a string went wrong.")
      .def_readonly("problem", &ParseError::problem)
      .def_readonly("offset", &ParseError::offset, "In bytes of UTF-8.")
      .def_readonly("fragment", &ParseError::fragment)
      .def_readonly("expected", &ParseError::expected)
      .def_readonly("caret", &ParseError::caret)
      .def_property_readonly("message", &ParseError::Message);
  module.def("parse_spec", &ParseShim, py::arg("text"), py::arg("devices"),
             py::arg("kinds"));
}

}  // namespace

void BindAllocation(py::module_& module) {
  BindInputs(module);
  BindSpec(module);
  module.def(
      "torch_kind",
      [](const std::string& kind) { return std::string(TorchKind(kind)); },
      py::arg("kind"));
  module.def(
      "format_bytes", [](int64_t bytes) { return FormatBytes(Bytes(bytes)); },
      py::arg("bytes"));
  module.def(
      "group_names",
      [](const std::vector<std::string>& names) { return GroupNames(names); },
      py::arg("names"));
  module.def(
      "text_encoder_head",
      [](const std::string& block) { return TextEncoderHeadReason(block); },
      py::arg("block"));
  module.def("blocks_of_tensors", &BlocksShim, py::arg("tensors"));
}

}  // namespace distorch::bindings
