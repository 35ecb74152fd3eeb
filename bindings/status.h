// SPDX-License-Identifier: Apache-2.0
// absl::Status for Python, in one place.
#ifndef DISTORCH_BINDINGS_STATUS_H_
#define DISTORCH_BINDINGS_STATUS_H_

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace distorch::bindings {

// Raises ValueError for a wrong argument, MemoryError for want of memory (which
// needs the interpreter's lock), RuntimeError for any other failure.
inline void Check(const absl::Status& status) {
  if (status.ok()) return;
  const std::string message(status.message());
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kAlreadyExists:
      throw pybind11::value_error(message);
    case absl::StatusCode::kResourceExhausted:
      PyErr_SetString(PyExc_MemoryError, message.c_str());
      throw pybind11::error_already_set();
    default:
      throw std::runtime_error(message);
  }
}

template <typename T>
T Value(absl::StatusOr<T> result) {
  Check(result.status());
  return *std::move(result);
}

}  // namespace distorch::bindings

#endif  // DISTORCH_BINDINGS_STATUS_H_
