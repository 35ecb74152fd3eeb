// SPDX-License-Identifier: Apache-2.0
#include "allocation/report.h"

#include <algorithm>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "allocation/printer.h"

namespace distorch {
namespace {

constexpr int64_t kFullPercent = 90;

// part / whole in percent with two decimals, rounded to nearest.
std::string Percent(Bytes part, Bytes whole) {
  if (whole <= Bytes(0)) return "0.00%";
  const int64_t twice = MulDiv(part, 20000, whole.value()).value();
  const int64_t hundredths = (twice + 1) / 2;
  return absl::StrFormat("%d.%02d%%", hundredths / 100, hundredths % 100);
}

// Columns as wide as their widest cell; the first to the left, others to the
// right.
class Table {
 public:
  Table(std::string title, std::vector<std::string> header)
      : title_(std::move(title)) {
    Add(std::move(header));
  }
  void Add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  bool empty() const { return rows_.size() < 2; }
  std::string Format() const;

 private:
  std::string title_;
  std::vector<std::vector<std::string>> rows_;
};

std::string Table::Format() const {
  std::vector<size_t> widths(rows_[0].size());
  for (const auto& row : rows_) {
    for (size_t c = 0; c < row.size(); ++c) {
      widths[c] = std::max(widths[c], row[c].size());
    }
  }
  size_t line = 0;
  for (const size_t width : widths) line += width + 2;
  line = std::max(line - 2, title_.size());
  std::string text = absl::StrCat(title_, "\n", std::string(line, '='), "\n");
  for (size_t r = 0; r < rows_.size(); ++r) {
    std::string out;
    for (size_t c = 0; c < widths.size(); ++c) {
      const std::string gap(widths[c] - rows_[r][c].size(), ' ');
      if (c > 0) out.append("  ");
      out.append(c == 0 ? rows_[r][c] + gap : gap + rows_[r][c]);
    }
    out.erase(out.find_last_not_of(' ') + 1);
    absl::StrAppend(&text, out, "\n");
    if (r == 0) absl::StrAppend(&text, std::string(line, '-'), "\n");
  }
  return text;
}

// nullopt where nobody knows it.
std::optional<Bytes> Total(const DeviceId& device,
                           absl::Span<const Device> devices) {
  const Device* row = FindDevice(devices, device);
  return row == nullptr ? std::nullopt : row->total;
}

std::string VramAnalysis(const Plan& plan, absl::Span<const Device> devices) {
  Table table("DisTorch2 Model Virtual VRAM Analysis",
              {"Object", "Role", "Memory(GB)", "Here(GB)", "Elsewhere(GB)"});
  for (const DeviceShare& share : plan.devices) {
    const bool is_compute = share.device == plan.compute;
    const std::optional<Bytes> total = Total(share.device, devices);
    table.Add({share.device.ToString(), is_compute ? "compute" : "donor",
               total ? FormatGB(*total) : "unknown", FormatGB(share.used),
               is_compute ? FormatGB(plan.model_bytes - share.used) : "-"});
  }
  return table.Format();
}

std::string DeviceAllocations(const Plan& plan,
                              absl::Span<const Device> devices) {
  Table table("DisTorch2 Model Device Allocations",
              {"Device", "VRAM GB", "Dev %", "Model GB", "Dist %"});
  for (const DeviceShare& share : plan.devices) {
    const std::optional<Bytes> total = Total(share.device, devices);
    table.Add({share.device.ToString(), total ? FormatGB(*total) : "unknown",
               total ? Percent(share.used, *total) : "unknown",
               FormatGB(share.used), Percent(share.used, plan.model_bytes)});
  }
  return table.Format();
}

// What the caps hold: weights, and on the compute device the slots into which
// the others' weights are streamed.
std::string Caps(const Plan& plan) {
  if (plan.slots == 0) return "";
  Table table("DisTorch2 Model Caps",
              {"Device", "Cap(GB)", "Weights(GB)", "Slots(GB)", "Slots"});
  for (const DeviceShare& share : plan.devices) {
    const bool has_slots = share.slots > Bytes(0);
    table.Add({share.device.ToString(),
               share.cap == Bytes::Max() ? "unknown" : FormatGB(share.cap),
               FormatGB(share.used), FormatGB(share.slots),
               has_slots ? absl::StrCat(plan.slots, " of ",
                                        FormatBytes(plan.slot_bytes))
                         : "-"});
  }
  return table.Format() + "\n";
}

std::string LayerDistribution(const Plan& plan,
                              absl::Span<const Block> blocks) {
  std::map<std::string, std::pair<int64_t, Bytes>> types;
  for (const Block& block : blocks) {
    if (block.layer_type.empty()) continue;
    auto& [count, bytes] = types[block.layer_type];
    ++count;
    bytes += block.bytes;
  }
  Table table("DisTorch2 Model Layer Distribution",
              {"Layer Type", "Layers", "Memory (MB)", "% Total"});
  for (const auto& [type, sum] : types) {
    table.Add({type, absl::StrCat(sum.first), FormatMB(sum.second),
               Percent(sum.second, plan.model_bytes)});
  }
  return table.empty() ? "" : table.Format() + "\n";
}

// Blocks of less than 0.01 % of the model each are many and hide the rest:
// their row is their own.
std::string Assignments(const Plan& plan, absl::Span<const Block> blocks) {
  struct Sum {
    int64_t count = 0;
    Bytes bytes;
  };
  std::vector<Sum> large(plan.devices.size());
  std::vector<Sum> small(plan.devices.size());
  const Bytes limit = MulDiv(plan.model_bytes, 1, 10000);
  for (size_t i = 0; i < blocks.size(); ++i) {
    auto& sums = blocks[i].bytes < limit ? small : large;
    Sum& sum = sums[plan.placement[i]];
    ++sum.count;
    sum.bytes += blocks[i].bytes;
  }
  Table table("DisTorch2 Model Final Device/Layer Assignments",
              {"Device", "Layers", "Memory (MB)", "% Total"});
  for (size_t d = 0; d < plan.devices.size(); ++d) {
    const std::string name = plan.devices[d].device.ToString();
    const auto add = [&](const std::string& label, const Sum& sum) {
      table.Add({label, absl::StrCat(sum.count), FormatMB(sum.bytes),
                 Percent(sum.bytes, plan.model_bytes)});
    };
    add(name, large[d]);
    if (small[d].count > 0) add(name + " (small)", small[d]);
  }
  return table.Format();
}

std::string Warnings(const Plan& plan, absl::Span<const Device> devices) {
  std::string text;
  for (const DeviceShare& share : plan.devices) {
    const std::optional<Bytes> total = Total(share.device, devices);
    if (!total || share.device.IsHost()) continue;
    const Bytes limit = MulDiv(*total, kFullPercent, 100);
    if (share.used <= limit) continue;
    absl::StrAppend(
        &text, "warning: ", share.device.ToString(),
        " holds weights in more than ", kFullPercent, "% of its memory; move ",
        FormatExactSize(MiB((share.used - limit).value() / MiB(1).value() + 1)),
        " more off it\n");
  }
  return text;
}

}  // namespace

std::string FormatTables(const Plan& plan, absl::Span<const Block> blocks,
                         absl::Span<const Device> devices) {
  std::string text = absl::StrCat(
      VramAnalysis(plan, devices), "\nFinal Allocation String\n",
      FormatSpec(plan.spec), "\n\n", DeviceAllocations(plan, devices), "\n",
      Caps(plan), LayerDistribution(plan, blocks), Assignments(plan, blocks));
  if (!plan.notes.empty()) absl::StrAppend(&text, "\n");
  for (const std::string& note : plan.notes) {
    absl::StrAppend(&text, "note: ", note, "\n");
  }
  absl::StrAppend(&text, Warnings(plan, devices));
  return text;
}

}  // namespace distorch
