// SPDX-License-Identifier: Apache-2.0
// distorch/telemetry for Python: file headers and statistics of logs. The lock
// is released while a file is read.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "bindings/bindings.h"
#include "distorch/telemetry/log_stats.h"
#include "distorch/telemetry/safetensors_header.h"

namespace distorch::bindings {
namespace {

namespace py = pybind11;

py::str ToStr(std::string_view text) { return {text.data(), text.size()}; }

// (tensors: [(name, dtype, shape, begin, end)], metadata, header bytes), or
// (None, message, whether the file itself could not be read)
using TensorRow =
    py::typing::Tuple<py::str, py::str, py::typing::Tuple<int, py::ellipsis>,
                      std::int64_t, std::int64_t>;
using Header =
    py::typing::Tuple<py::typing::List<TensorRow>,
                      py::typing::Dict<py::str, py::str>, std::int64_t>;
using NoHeader = py::typing::Tuple<py::none, py::str, bool>;

py::typing::Union<Header, NoHeader> ReadSafetensorsShim(
    const std::string& path) {
  absl::StatusOr<SafetensorsHeader> header;
  {
    const py::gil_scoped_release release;
    header = SafetensorsHeader::ReadFile(path);
  }
  if (!header.ok()) {
    return py::make_tuple(
        py::none(), std::string(header.status().message()),
        header.status().code() != absl::StatusCode::kInvalidArgument);
  }
  py::list tensors;
  for (std::size_t i = 0; i < header->size(); ++i) {
    tensors.append(py::make_tuple(ToStr(header->name(i)),
                                  ToStr(header->dtype(i).name),
                                  py::tuple(py::cast(header->shape(i))),
                                  header->begin(i), header->end(i)));
  }
  py::dict metadata;
  for (std::size_t i = 0; i < header->metadata_size(); ++i) {
    const auto [key, value] = header->metadata(i);
    metadata[ToStr(key)] = ToStr(value);
  }
  return py::make_tuple(tensors, metadata, header->header_bytes());
}

// None, or (message, whether the log is not there)
py::typing::Optional<py::typing::Tuple<py::str, bool>> ReadLogShim(
    LogStats& stats, const std::string& path) {
  absl::Status status;
  {
    const py::gil_scoped_release release;
    status = stats.ReadFile(path);
  }
  if (status.ok()) return py::none();
  return py::make_tuple(std::string(status.message()),
                        status.code() == absl::StatusCode::kNotFound);
}

// A log may hold any bytes; what is no UTF-8 is replaced.
py::str ToText(const std::string& bytes) {
  return py::reinterpret_steal<py::str>(PyUnicode_DecodeUTF8(
      bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "replace"));
}

// device, samples, peak, sampled peak, minimum, average, median, 95th
// percentile, time of the peak, whether that is since 1970, interval, gaps,
// seconds of gaps, longest gap
using LogDeviceRow =
    py::typing::Tuple<py::str, std::int64_t, double, double, double, double,
                      double, double, double, bool, double, std::int64_t,
                      double, double>;
// name, type, count, seconds, peaks by device
using LogNameRow = py::typing::Tuple<py::str, py::str, std::int64_t, double,
                                     py::typing::Dict<py::str, double>>;
// log, line, reason, text
using BadLineRow = py::typing::Tuple<py::str, std::int64_t, py::str, py::str>;

py::typing::List<LogDeviceRow> DevicesShim(const LogStats& stats) {
  py::typing::List<LogDeviceRow> rows;
  for (const LogDeviceStats& d : stats.Devices()) {
    rows.append(py::make_tuple(
        ToText(d.device), d.samples, d.peak, d.sampled_peak, d.minimum,
        d.average, d.median, d.p95, d.peak_time, d.peak_since_1970, d.interval,
        d.gaps, d.gap_seconds, d.longest_gap));
  }
  return rows;
}

py::typing::List<LogNameRow> NamesShim(const std::vector<LogNameStats>& names) {
  py::typing::List<LogNameRow> rows;
  for (const LogNameStats& n : names) {
    py::dict peaks;
    for (const auto& [device, megabytes] : n.peaks) {
      peaks[ToText(device)] = megabytes;
    }
    rows.append(py::make_tuple(ToText(n.name), ToText(n.type), n.count,
                               n.seconds, peaks));
  }
  return rows;
}

py::typing::List<BadLineRow> BadLinesShim(const LogStats& stats) {
  py::typing::List<BadLineRow> rows;
  for (const BadLogLine& bad : stats.first_bad_lines()) {
    rows.append(py::make_tuple(ToText(bad.log), bad.line, bad.reason,
                               ToText(bad.text)));
  }
  return rows;
}

py::typing::Dict<py::str, std::int64_t> FailuresShim(const LogStats& stats) {
  py::typing::Dict<py::str, std::int64_t> rows;
  for (const auto& [reason, count] : stats.failures()) {
    rows[ToText(reason)] = count;
  }
  return rows;
}

void BindLogStats(py::module_& module) {
  py::class_<LogStats>(module, "LogStats")
      .def(py::init<>())
      .def("start", &LogStats::Start, py::arg("name"))
      .def(
          "feed",
          [](LogStats& stats, const py::bytes& piece) {
            stats.Feed(std::string_view(piece));
          },
          py::arg("piece"))
      .def("end", &LogStats::End)
      .def("read_file", &ReadLogShim, py::arg("path"))
      .def("devices", &DevicesShim)
      .def("models",
           [](const LogStats& stats) { return NamesShim(stats.models()); })
      .def("nodes",
           [](const LogStats& stats) { return NamesShim(stats.nodes()); })
      .def("failures", &FailuresShim)
      .def("first_bad_lines", &BadLinesShim)
      .def_property_readonly("lines", &LogStats::lines)
      .def_property_readonly("bad_lines", &LogStats::bad_lines)
      .def_property_readonly("clock_changes", &LogStats::clock_changes)
      .def_property_readonly("dropped", &LogStats::dropped);
}

}  // namespace

void BindTelemetry(py::module_& module) {
  BindLogStats(module);
  module.def("read_safetensors_header", &ReadSafetensorsShim, py::arg("path"));
}

}  // namespace distorch::bindings
