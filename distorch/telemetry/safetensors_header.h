// SPDX-License-Identifier: Apache-2.0
// Reads the header of a safetensors file: which tensors it holds, of which
// type and shape, and where their bytes are. Never reads the tensors' bytes.
//
//   absl::StatusOr<SafetensorsHeader> header =
//       SafetensorsHeader::ReadFile("model.safetensors");
//   for (size_t i = 0; i < header->size(); ++i) {
//     header->name(i);        // "model.diffusion_model.out.weight"
//     header->shape(i);       // {3072, 64}
//     header->end(i) - header->begin(i);   // bytes
//   }
//
// The file is not trusted. What the format forbids is an InvalidArgument whose
// message starts with the byte of the header or names the tensor:
//   - a header of more than 100,000,000 bytes, or longer than the file;
//   - anything that is not strict JSON in UTF-8, text after the object;
//   - a name given twice (after decoding), a tensor without dtype, shape or
//     data_offsets, a dtype that is not in the format's table;
//   - a shape whose size overflows, also where another dimension is 0;
//   - offsets that do not match the shape, overlap, leave a hole, or do not
//     end where the file ends (so a truncated download is refused);
//   - a sub-byte type (F4, F6_*) whose tensor does not end on a byte;
//   - metadata that are not strings, or more than 2^20 of them.
// Unknown keys inside a tensor's entry are skipped, as other readers do.
//
// Costs: one pass over the header, at most 2x its bytes of memory for a header
// of 1 MB or more. The file is read with pread, so that a file that shrinks
// meanwhile is an error and not a SIGBUS.
//
// Immutable after construction; const calls may run together.
#ifndef DISTORCH_DISTORCH_TELEMETRY_SAFETENSORS_HEADER_H_
#define DISTORCH_DISTORCH_TELEMETRY_SAFETENSORS_HEADER_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace distorch {

class JsonReader;

// Element types, by their names in the format ("F8_E4M3", "BF16", ...).
struct SafetensorsDtype {
  std::string_view name;
  int bits;  // size of one element
};

// The row of the format's table with this name, or nullptr.
const SafetensorsDtype* FindSafetensorsDtype(std::string_view name);

class SafetensorsHeader {
 public:
  // As in the format's reference implementation.
  static constexpr uint64_t kMaxHeaderBytes = 100'000'000;
  // Arbitrary: real files hold at most some hundred entries.
  static constexpr size_t kMaxMetadata = size_t{1} << 20;

  // Reads `path`. NotFound or Internal when the file cannot be opened or read
  // (errno in the message), InvalidArgument when it is not a safetensors file.
  // Only regular files are read; links are followed.
  static absl::StatusOr<SafetensorsHeader> ReadFile(const std::string& path);

  // Reads a header of which the text and the number of bytes behind it are
  // known. For tests and for files that are not on a disk.
  static absl::StatusOr<SafetensorsHeader> Parse(std::string json,
                                                 uint64_t data_bytes);

  // Tensors, in the order of their bytes in the file.
  size_t size() const { return tensors_.size(); }
  std::string_view name(size_t i) const { return View(tensors_[i].name); }
  const SafetensorsDtype& dtype(size_t i) const;
  std::vector<uint64_t> shape(size_t i) const;
  // Offsets from the first byte behind the header, end exclusive.
  uint64_t begin(size_t i) const { return tensors_[i].begin; }
  uint64_t end(size_t i) const { return tensors_[i].end; }

  // `__metadata__`, in the order of the file.
  size_t metadata_size() const { return metadata_.size(); }
  std::pair<std::string_view, std::string_view> metadata(size_t i) const {
    return {View(metadata_[i].key), View(metadata_[i].value)};
  }

  // Length of the JSON text; the tensors' bytes start at header_bytes() + 8.
  uint64_t header_bytes() const { return text_.size(); }

  // Implementation details follow.
 private:
  struct Text {  // a piece of text_, which holds fewer than 2^32 bytes
    uint32_t at;
    uint32_t size;
  };
  // A shape stays text: a header may name 50 million dimensions.
  struct Tensor {
    Text name;
    uint32_t shape_at;
    uint8_t dtype;
    uint64_t begin;
    uint64_t end;
  };
  struct Entry {
    Text key;
    Text value;
  };

  SafetensorsHeader() = default;
  std::string_view View(Text piece) const {
    return std::string_view(text_).substr(piece.at, piece.size);
  }
  Text Piece(std::string_view view) const;
  absl::Status ParseText(uint64_t data_bytes);
  bool ReadEntries(JsonReader& in);
  bool ReadMetadata(JsonReader& in);
  bool ReadTensor(JsonReader& in, std::string_view name);
  bool ReadDtype(JsonReader& in, uint8_t* dtype) const;
  absl::Status CheckNames() const;
  absl::Status CheckOffsets(uint64_t data_bytes);

  std::string text_;
  std::vector<Tensor> tensors_;
  std::vector<Entry> metadata_;
};

}  // namespace distorch

#endif  // DISTORCH_DISTORCH_TELEMETRY_SAFETENSORS_HEADER_H_
