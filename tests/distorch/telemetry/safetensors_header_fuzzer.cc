// SPDX-License-Identifier: Apache-2.0
// Any bytes are either refused, or give a header whose tensors lie in order,
// without holes, inside the data. The first two bytes are the data's length.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "distorch/telemetry/safetensors_header.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const uint64_t data_bytes = data[0] | uint64_t{data[1]} << 8;
  std::string text;
  for (size_t i = 2; i < size; ++i) text.push_back(static_cast<char>(data[i]));
  const auto header = distorch::SafetensorsHeader::Parse(text, data_bytes);
  if (!header.ok()) return 0;
  uint64_t at = 0;
  for (size_t i = 0; i < header->size(); ++i) {
    uint64_t bits = static_cast<uint64_t>(header->dtype(i).bits);
    for (const uint64_t dim : header->shape(i)) bits *= dim;
    if (header->begin(i) != at || header->end(i) - at != bits / 8) abort();
    at = header->end(i);
    if (header->name(i).size() > text.size()) abort();
  }
  if (at != data_bytes) abort();
  return 0;
}
