// SPDX-License-Identifier: Apache-2.0
#include "distorch/telemetry/safetensors_header.h"

#include <array>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "distorch/device/file_reader.h"
#include "distorch/telemetry/json_reader.h"
#include "distorch/telemetry/safetensors_refusal.h"

namespace distorch {
namespace {

constexpr std::array<SafetensorsDtype, 22> kDtypes = {{
    {"BOOL", 8},    {"F4", 4},          {"F6_E2M3", 6},     {"F6_E3M2", 6},
    {"U8", 8},      {"I8", 8},          {"F8_E5M2", 8},     {"F8_E4M3", 8},
    {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
    {"U16", 16},    {"F16", 16},        {"BF16", 16},       {"I32", 32},
    {"U32", 32},    {"F32", 32},        {"C64", 64},        {"F64", 64},
    {"I64", 64},    {"U64", 64},
}};
constexpr uint64_t kLengthBytes = 8;  // the file's first bytes: header length
// The shortest entry: "a":{"dtype":"U8","shape":[],"data_offsets":[0,0]},
constexpr size_t kMinEntryBytes = 50;

// *product *= factor, unless that overflows.
bool Multiply(uint64_t factor, uint64_t* product) {
  if (factor != 0 && *product > std::numeric_limits<uint64_t>::max() / factor) {
    return false;
  }
  *product *= factor;
  return true;
}

// Reads a shape and multiplies it out. Zeros are left out of the product, so
// that one cannot hide an overflow of the others. False on overflow only when
// the reader is still fine.
bool ReadShape(JsonReader& in, uint64_t* elements) {
  bool zero = false;
  uint64_t product = 1;
  if (!in.Expect('[')) return false;
  if (!in.Consume(']')) {
    do {
      uint64_t dim = 0;
      if (!in.Unsigned(&dim)) return false;
      if (dim == 0) {
        zero = true;
      } else if (!Multiply(dim, &product)) {
        return in.Fail("the shape's size overflows 64 bits");
      }
    } while (in.Consume(','));
    if (!in.Expect(']')) return false;
  }
  *elements = zero ? 0 : product;
  return true;
}

bool ReadOffsets(JsonReader& in, uint64_t* begin, uint64_t* end) {
  return in.Expect('[') && in.Unsigned(begin) && in.Expect(',') &&
         in.Unsigned(end) && in.Expect(']');
}

absl::Status CheckLength(uint64_t header_bytes, uint64_t file_bytes) {
  if (header_bytes > SafetensorsHeader::kMaxHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "header of ", header_bytes, " bytes, the format allows ",
        SafetensorsHeader::kMaxHeaderBytes, " (is this a safetensors file?)"));
  }
  if (header_bytes > file_bytes - kLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("header of ", header_bytes, " bytes in a file of ",
                     file_bytes, ": the file is truncated"));
  }
  return absl::OkStatus();
}

}  // namespace

const SafetensorsDtype* FindSafetensorsDtype(std::string_view name) {
  for (const SafetensorsDtype& dtype : kDtypes) {
    if (dtype.name == name) return &dtype;
  }
  return nullptr;
}

absl::StatusOr<SafetensorsHeader> SafetensorsHeader::ReadFile(
    const std::string& path) {
  const auto file = FileReader::Open(path);
  if (!file.ok()) return file.status();
  const uint64_t file_bytes = file->size();
  if (file_bytes < kLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", file_bytes, " bytes, too short for a header"));
  }
  std::array<char, kLengthBytes> raw = {};
  absl::Status status = file->ReadExactly(0, raw.data(), raw.size());
  if (!status.ok()) return status;
  uint64_t length = 0;
  for (size_t i = raw.size(); i-- > 0;) {
    length = length << 8 | static_cast<uint8_t>(raw[i]);
  }
  status = CheckLength(length, file_bytes);
  std::string text;
  if (status.ok()) {
    text.resize(length);
    status = file->ReadExactly(kLengthBytes, text.data(), length);
    if (!status.ok()) return status;
    auto header = Parse(std::move(text), file_bytes - kLengthBytes - length);
    if (header.ok()) return header;
    status = header.status();
  }
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", status.message()));
}

absl::StatusOr<SafetensorsHeader> SafetensorsHeader::Parse(
    std::string json, uint64_t data_bytes) {
  if (json.size() > kMaxHeaderBytes) {
    return CheckLength(json.size(), std::numeric_limits<uint64_t>::max());
  }
  SafetensorsHeader header;
  header.text_ = std::move(json);
  absl::Status status = header.ParseText(data_bytes);
  if (!status.ok()) return status;
  return header;
}

absl::Status SafetensorsHeader::ParseText(uint64_t data_bytes) {
  // Reserved pages cost nothing until used, growing would cost a second copy.
  tensors_.reserve(text_.size() / kMinEntryBytes + 1);
  JsonReader in(absl::MakeSpan(text_));
  if (text_.empty() || text_[0] != '{') {
    in.Fail("a safetensors header starts with '{'");
  }
  if (ReadEntries(in) && !in.AtEnd()) in.Fail("text after the header");
  if (!in.ok()) return in.status();
  absl::Status status = CheckNames();
  return status.ok() ? CheckOffsets(data_bytes) : status;
}

bool SafetensorsHeader::ReadEntries(JsonReader& in) {
  if (!in.Expect('{')) return false;
  if (in.Consume('}')) return true;
  bool seen_metadata = false;
  do {
    std::string_view name;
    if (!in.String(&name) || !in.Expect(':')) return false;
    if (name == "__metadata__") {
      if (seen_metadata) return in.Fail("second __metadata__");
      seen_metadata = true;
      if (!ReadMetadata(in)) return false;
    } else if (!ReadTensor(in, name)) {
      return false;
    }
  } while (in.Consume(','));
  return in.Expect('}');
}

bool SafetensorsHeader::ReadMetadata(JsonReader& in) {
  if (!in.Expect('{')) return false;
  if (in.Consume('}')) return true;
  do {
    std::string_view key;
    std::string_view value;
    if (!in.String(&key) || !in.Expect(':') || !in.String(&value)) return false;
    if (metadata_.size() == kMaxMetadata) return in.Fail("too many metadata");
    metadata_.push_back({Piece(key), Piece(value)});
  } while (in.Consume(','));
  return in.Expect('}');
}

bool SafetensorsHeader::ReadDtype(JsonReader& in, uint8_t* dtype) const {
  std::string_view word;
  if (!in.String(&word)) return false;
  const SafetensorsDtype* found = FindSafetensorsDtype(word);
  if (found == nullptr) return in.Fail("unknown dtype " + Shown(word));
  *dtype = static_cast<uint8_t>(found - kDtypes.data());
  return true;
}

bool SafetensorsHeader::ReadTensor(JsonReader& in, std::string_view name) {
  enum : unsigned { kDtype = 1, kShape = 2, kOffsets = 4, kAll = 7 };
  Tensor tensor = {};
  tensor.name = Piece(name);
  uint64_t elements = 0;
  unsigned seen = 0;
  if (!in.Expect('{')) return false;
  do {
    std::string_view key;
    if (!in.String(&key) || !in.Expect(':')) return false;
    const unsigned which = key == "dtype"          ? unsigned{kDtype}
                           : key == "shape"        ? unsigned{kShape}
                           : key == "data_offsets" ? unsigned{kOffsets}
                                                   : 0U;
    if ((seen & which) != 0) return in.Fail("key given twice");
    seen |= which;
    in.Peek();
    if (which == kShape) tensor.shape_at = static_cast<uint32_t>(in.offset());
    const bool fine = which == kDtype   ? ReadDtype(in, &tensor.dtype)
                      : which == kShape ? ReadShape(in, &elements)
                      : which == kOffsets
                          ? ReadOffsets(in, &tensor.begin, &tensor.end)
                          : in.SkipValue();
    if (!fine) return false;
  } while (in.Consume(','));
  if (!in.Expect('}')) return false;
  if (seen != kAll) {
    return in.Fail("tensor " + Shown(name) +
                   " lacks dtype, shape or data_offsets");
  }
  uint64_t bits = elements;
  if (!Multiply(static_cast<uint64_t>(kDtypes[tensor.dtype].bits), &bits)) {
    return in.Fail("the shape's size overflows 64 bits");
  }
  if (bits % 8 != 0) {
    return in.Fail("tensor " + Shown(name) + " does not end on a byte");
  }
  if (tensor.end < tensor.begin || tensor.end - tensor.begin != bits / 8) {
    return in.Fail(absl::StrCat(
        "tensor ", Shown(name), ": data_offsets [", tensor.begin, ",",
        tensor.end, "] do not match its shape of ", bits / 8, " bytes"));
  }
  tensors_.push_back(tensor);
  return true;
}

SafetensorsHeader::Text SafetensorsHeader::Piece(std::string_view view) const {
  return {static_cast<uint32_t>(view.data() - text_.data()),
          static_cast<uint32_t>(view.size())};
}

const SafetensorsDtype& SafetensorsHeader::dtype(size_t i) const {
  return kDtypes[tensors_[i].dtype];
}

std::vector<uint64_t> SafetensorsHeader::shape(size_t i) const {
  // Checked when it was read: digits, commas and white space up to ']'.
  std::vector<uint64_t> dims;
  bool digits = false;
  for (size_t at = tensors_[i].shape_at + 1; text_[at] != ']'; ++at) {
    const char c = text_[at];
    if (c < '0' || c > '9') {
      digits = false;
      continue;
    }
    if (!digits) dims.push_back(0);
    digits = true;
    dims.back() = dims.back() * 10 + static_cast<uint64_t>(c - '0');
  }
  return dims;
}

}  // namespace distorch
