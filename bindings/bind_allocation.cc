// SPDX-License-Identifier: Apache-2.0
// The table of what `distorch._C` offers of allocation/. The Python package
// wraps it in distorch/allocation.py, which turns ParseError and PlanFault into
// exceptions.
#include <pybind11/stl.h>

#include <memory>
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
#include "allocation/plan_json.h"
#include "allocation/planner.h"
#include "allocation/printer.h"
#include "allocation/report.h"
#include "bindings/bindings.h"
#include "bindings/status.h"

namespace distorch::bindings {
namespace {

namespace py = pybind11;

// A plan with what it was made from, so that it can name its blocks.
struct BoundPlan {
  Plan plan;
  std::shared_ptr<const std::vector<Block>> blocks;
  std::vector<Device> devices;
};

// Why there is no plan: `candidates` is empty unless nothing fitted.
struct PlanFault {
  std::string message;
  bool does_not_fit = false;
  PlanFailure failure;
};

DeviceId DeviceFrom(const std::string& text) {
  if (std::optional<DeviceId> device = DeviceId::FromString(text)) {
    return *std::move(device);
  }
  throw std::invalid_argument("not the name of a device: '" + text +
                              "'; expected one as cuda:0 or cpu");
}

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

std::variant<BoundPlan, PlanFault> PlanShim(const Spec& spec,
                                            std::vector<Block> blocks,
                                            std::vector<Device> devices,
                                            const std::string& compute,
                                            const PlanOptions& options) {
  const DeviceId device = compute.empty() ? DeviceId() : DeviceFrom(compute);
  PlanFault fault;
  absl::StatusOr<Plan> plan =
      MakePlan(spec, blocks, devices, device, options, &fault.failure);
  if (plan.ok()) {
    return BoundPlan{
        *std::move(plan),
        std::make_shared<const std::vector<Block>>(std::move(blocks)),
        std::move(devices)};
  }
  fault.message = std::string(plan.status().message());
  fault.does_not_fit =
      plan.status().code() == absl::StatusCode::kResourceExhausted;
  return fault;
}

py::dict PlacementShim(const BoundPlan& bound) {
  std::vector<py::str> names;
  for (const DeviceShare& share : bound.plan.devices) {
    names.emplace_back(share.device.ToString());
  }
  py::dict placement;
  for (size_t i = 0; i < bound.blocks->size(); ++i) {
    placement[py::str((*bound.blocks)[i].name)] =
        names[bound.plan.placement[i]];
  }
  return placement;
}

py::dict ReasonsShim(const BoundPlan& bound) {
  py::dict reasons;
  for (size_t i = 0; i < bound.blocks->size(); ++i) {
    reasons[py::str((*bound.blocks)[i].name)] =
        ReasonText(bound.plan, *bound.blocks, i);
  }
  return reasons;
}

// {device: value(share)} over the plan's devices.
template <typename Value>
auto ByDevice(Value value) {
  return [value](const BoundPlan& bound) {
    py::dict by_device;
    for (const DeviceShare& share : bound.plan.devices) {
      by_device[py::str(share.device.ToString())] = value(share);
    }
    return by_device;
  };
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

void BindPlan(py::module_& module) {
  py::class_<PlanFault>(module, "PlanFault", "Why there is no plan.")
      .def_readonly("message", &PlanFault::message)
      .def_readonly("does_not_fit", &PlanFault::does_not_fit)
      .def_property_readonly(
          "problem", [](const PlanFault& f) { return f.failure.problem; })
      .def_property_readonly(
          "remedy", [](const PlanFault& f) { return f.failure.remedy; })
      .def_property_readonly("candidates", [](const PlanFault& fault) {
        std::vector<std::tuple<std::string, int64_t, int64_t, int64_t>> rows;
        for (const Candidate& c : fault.failure.candidates) {
          rows.emplace_back(c.device.ToString(), c.asked.value(), c.cap.value(),
                            c.free.value());
        }
        return rows;
      });
  py::class_<BoundPlan>(module, "Plan", "A place for every block.")
      .def_property_readonly("placement", &PlacementShim)
      .def_property_readonly("reasons", &ReasonsShim)
      .def_property_readonly("totals", ByDevice([](const DeviceShare& share) {
                               return share.used.value();
                             }))
      .def_property_readonly("caps", ByDevice([](const DeviceShare& share) {
                               return share.cap.value();
                             }))
      .def_property_readonly(
          "staging", ByDevice([](const DeviceShare& share) {
            return share.slots.value();
          }),
          "Bytes by device that streaming takes beside the weights.")
      .def_property_readonly(
          "slots", [](const BoundPlan& bound) { return bound.plan.slots; },
          "Staging slots on the compute device.")
      .def_property_readonly(
          "slot_bytes",
          [](const BoundPlan& bound) { return bound.plan.slot_bytes.value(); })
      .def_property_readonly(
          "modes", ByDevice([](const DeviceShare& share) {
            return std::string(ModeName(share.mode));
          }),
          "'auto', 'stream' or 'migrate' by device, as the string says.")
      .def_property_readonly(
          "notes", [](const BoundPlan& bound) { return bound.plan.notes; })
      .def_property_readonly(
          "compute",
          [](const BoundPlan& bound) { return bound.plan.compute.ToString(); })
      .def_property_readonly(
          "spec", [](const BoundPlan& bound) { return bound.plan.spec; })
      .def_property_readonly(
          "model_bytes",
          [](const BoundPlan& bound) { return bound.plan.model_bytes.value(); })
      .def_property_readonly(
          "blocks", [](const BoundPlan& bound) { return *bound.blocks; })
      .def("to_json",
           [](const BoundPlan& bound) {
             return PlanToFullJson(bound.plan, *bound.blocks);
           })
      .def("to_stable_json",
           [](const BoundPlan& bound) {
             return PlanToJson(bound.plan, *bound.blocks);
           })
      .def("tables",
           [](const BoundPlan& bound) {
             return FormatTables(bound.plan, *bound.blocks, bound.devices);
           })
      .def(
          "check_invariants",
          [](const BoundPlan& bound) {
            Check(CheckInvariants(bound.plan, *bound.blocks));
          },
          "Raises RuntimeError naming the first broken promise.");
  // The arguments are copies by then: planning needs no Python object.
  module.def("plan_blocks", &PlanShim, py::arg("spec"), py::arg("blocks"),
             py::arg("devices"), py::arg("compute"), py::arg("options"),
             py::call_guard<py::gil_scoped_release>());
}

}  // namespace

void BindAllocation(py::module_& module) {
  BindInputs(module);
  BindSpec(module);
  BindPlan(module);
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
