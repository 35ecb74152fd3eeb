// SPDX-License-Identifier: Apache-2.0
// distorch/telemetry for Python: file headers. The lock is released while a
// file is read.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <string>

#include "bindings/bindings.h"
#include "distorch/telemetry/safetensors_header.h"

namespace distorch::bindings {
namespace {

namespace py = pybind11;

py::str ToStr(std::string_view text) { return {text.data(), text.size()}; }

// (tensors: [(name, dtype, shape, begin, end)], metadata, header bytes), or
// (None, message, whether the file itself could not be read)
py::tuple ReadSafetensorsShim(const std::string& path) {
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

}  // namespace

void BindTelemetry(py::module_& module) {
  module.def("read_safetensors_header", &ReadSafetensorsShim, py::arg("path"));
}

}  // namespace distorch::bindings
