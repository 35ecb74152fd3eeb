// SPDX-License-Identifier: Apache-2.0
// Reads a file by its UTF-8 path, on every system.
#ifndef DISTORCH_DEVICE_FILE_READER_H_
#define DISTORCH_DEVICE_FILE_READER_H_

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace distorch {

// A regular file, open for reading; errors begin with its path. Reading one
// from several threads is not coordinated; it moves no position.
class FileReader {
 public:
  // NotFound when there is none, InvalidArgument when it is a folder, a pipe or
  // a device (without waiting for its other end), Internal when the system
  // refuses.
  static absl::StatusOr<FileReader> Open(const std::string& path);

  FileReader(FileReader&& other) noexcept
      : path_(std::move(other.path_)),
        handle_(std::exchange(other.handle_, kClosed)),
        size_(other.size_) {}
  FileReader& operator=(FileReader&&) = delete;
  FileReader(const FileReader&) = delete;  // one owner
  FileReader& operator=(const FileReader&) = delete;
  ~FileReader();

  // Bytes when it was opened.
  std::uint64_t size() const { return size_; }

  // Reads up to `size` bytes at `offset`: fewer, or 0, only at the end.
  absl::StatusOr<std::size_t> ReadSome(std::uint64_t offset, char* out,
                                       std::size_t size) const;

  // Reads exactly `size` bytes. InvalidArgument when the file ends before.
  absl::Status ReadExactly(std::uint64_t offset, char* out,
                           std::uint64_t size) const;

 private:
  static constexpr std::intptr_t kClosed = -1;

  explicit FileReader(std::string path) : path_(std::move(path)) {}
  // What the system's last call failed with.
  absl::Status Failed(std::string_view what) const;

  std::string path_;
  std::intptr_t handle_ = kClosed;  // the system's
  std::uint64_t size_ = 0;
};

// Opens whatever fopen opens, a pipe too, for reading bytes; null, and errno,
// when it cannot.
std::FILE* OpenStream(const std::string& path);

}  // namespace distorch

#endif  // DISTORCH_DEVICE_FILE_READER_H_
