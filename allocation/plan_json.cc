// SPDX-License-Identifier: Apache-2.0
#include "allocation/plan_json.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "allocation/printer.h"

namespace distorch {
namespace {

void AppendString(std::string_view text, std::string* out) {
  out->push_back('"');
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out->push_back('\\');
      out->push_back(c);
    } else if (static_cast<unsigned char>(c) < 0x20) {
      absl::StrAppendFormat(out, "\\u%04x", static_cast<unsigned char>(c));
    } else {
      out->push_back(c);
    }
  }
  out->push_back('"');
}

// "name": [element, element] or {…}; `element(i, out)` appends one.
template <typename Element>
void AppendMembers(std::string_view name, char open, char close, size_t count,
                   Element element, std::string* out) {
  AppendString(name, out);
  absl::StrAppend(out, ": ", absl::string_view(&open, 1));
  for (size_t i = 0; i < count; ++i) {
    if (i > 0) out->append(", ");
    element(i, out);
  }
  out->push_back(close);
}

void AppendStable(const Plan& plan, absl::Span<const Block> blocks,
                  std::string* out) {
  std::vector<std::string> devices;
  for (const DeviceShare& share : plan.devices) {
    devices.push_back(JsonString(share.device.ToString()));
  }
  AppendMembers(
      "placement", '{', '}', blocks.size(),
      [&](size_t i, std::string* text) {
        AppendString(blocks[i].name, text);
        absl::StrAppend(text, ": ", devices[plan.placement[i]]);
      },
      out);
  out->append(", ");
  AppendMembers(
      "totals", '{', '}', devices.size(),
      [&](size_t i, std::string* text) {
        absl::StrAppend(text, devices[i], ": ", plan.devices[i].used.value());
      },
      out);
  out->append(", ");
  AppendMembers(
      "notes", '[', ']', plan.notes.size(),
      [&](size_t i, std::string* text) { AppendString(plan.notes[i], text); },
      out);
}

std::string_view OrderName(Order order) {
  switch (order) {
    case Order::kContiguous:
      return "contiguous";
    case Order::kStrided:
      return "strided";
    case Order::kAuto:
      break;
  }
  return "auto";
}

}  // namespace

std::string JsonString(std::string_view text) {
  std::string out;
  AppendString(text, &out);
  return out;
}

std::string PlanToJson(const Plan& plan, absl::Span<const Block> blocks) {
  std::string out = "{";
  AppendStable(plan, blocks, &out);
  out.push_back('}');
  return out;
}

std::string PlanToFullJson(const Plan& plan, absl::Span<const Block> blocks) {
  std::string out = absl::StrCat(
      "{\"version\": 1, \"allocation\": ", JsonString(FormatSpec(plan.spec)),
      ", \"compute\": ", JsonString(plan.compute.ToString()),
      ", \"order\": ", JsonString(OrderName(plan.order)),
      ", \"model_bytes\": ", plan.model_bytes.value(), ", ");
  AppendStable(plan, blocks, &out);
  const auto by_device = [&](std::string_view name, auto value) {
    out.append(", ");
    AppendMembers(
        name, '{', '}', plan.devices.size(),
        [&](size_t i, std::string* text) {
          const DeviceShare& share = plan.devices[i];
          AppendString(share.device.ToString(), text);
          absl::StrAppend(text, ": ", value(share));
        },
        &out);
  };
  by_device("caps", [](const DeviceShare& s) { return s.cap.value(); });
  by_device("slots", [](const DeviceShare& s) { return s.slots.value(); });
  absl::StrAppend(&out, ", \"slot_count\": ", plan.slots,
                  ", \"slot_bytes\": ", plan.slot_bytes.value());
  by_device("modes",
            [](const DeviceShare& s) { return JsonString(ModeName(s.mode)); });
  out.append(", ");
  AppendMembers(
      "reasons", '{', '}', blocks.size(),
      [&](size_t i, std::string* text) {
        AppendString(blocks[i].name, text);
        text->append(": ");
        AppendString(ReasonText(plan, blocks, i), text);
      },
      &out);
  out.push_back('}');
  return out;
}

}  // namespace distorch
