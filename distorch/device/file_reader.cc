// SPDX-License-Identifier: Apache-2.0
#include "distorch/device/file_reader.h"

#ifdef _WIN32
#include <windows.h>

#include "distorch/device/windows_text.h"
#else
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace distorch {
namespace {

// The system takes a 32-bit count on some systems; larger reads go in pieces.
constexpr std::uint64_t kLargestRead = 1U << 30;

std::error_code LastError() {
#ifdef _WIN32
  return {static_cast<int>(GetLastError()), std::system_category()};
#else
  return {errno, std::generic_category()};
#endif
}

#ifdef _WIN32
HANDLE AsHandle(std::intptr_t handle) {
  return reinterpret_cast<HANDLE>(handle);
}

bool IsFolder(const std::wstring& path) {
  const DWORD attributes = GetFileAttributesW(path.c_str());
  return attributes != INVALID_FILE_ATTRIBUTES &&
         (attributes & FILE_ATTRIBUTE_DIRECTORY) != 0;
}
#endif

}  // namespace

absl::Status FileReader::Failed(std::string_view what) const {
  const std::error_code error = LastError();
  const std::string message =
      absl::StrCat(path_, ": ", absl::string_view(what.data(), what.size()),
                   ": ", error.message());
  return error == std::errc::no_such_file_or_directory ||
                 error == std::errc::not_a_directory
             ? absl::NotFoundError(message)
             : absl::InternalError(message);
}

absl::StatusOr<FileReader> FileReader::Open(const std::string& path) {
  FileReader file(path);
  bool regular = true;
#ifdef _WIN32
  const std::wstring wide = Utf16(path);
  const HANDLE handle =
      CreateFileW(wide.c_str(), GENERIC_READ,
                  FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE,
                  nullptr, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
  if (handle == INVALID_HANDLE_VALUE) {
    if (!IsFolder(wide)) return file.Failed("cannot be opened");
    regular = false;  // Windows opens none
  } else {
    file.handle_ = reinterpret_cast<std::intptr_t>(handle);
    LARGE_INTEGER size{};
    regular = GetFileType(handle) == FILE_TYPE_DISK;
    if (regular && GetFileSizeEx(handle, &size) == 0) {
      return file.Failed("cannot be examined");
    }
    file.size_ = static_cast<std::uint64_t>(size.QuadPart);
  }
#else
  // O_NONBLOCK: opening a pipe must not wait for a writer.
  file.handle_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file.handle_ == kClosed) return file.Failed("cannot be opened");
  struct stat info = {};
  if (fstat(static_cast<int>(file.handle_), &info) != 0) {
    return file.Failed("cannot be examined");
  }
  regular = S_ISREG(info.st_mode);
  file.size_ = static_cast<std::uint64_t>(info.st_size);
#endif
  if (regular) return file;
  return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
}

FileReader::~FileReader() {
  if (handle_ == kClosed) return;
#ifdef _WIN32
  CloseHandle(AsHandle(handle_));
#else
  close(static_cast<int>(handle_));
#endif
}

absl::StatusOr<std::size_t> FileReader::ReadSome(std::uint64_t offset,
                                                 char* out,
                                                 std::size_t size) const {
  const std::size_t count = std::min<std::uint64_t>(size, kLargestRead);
#ifdef _WIN32
  OVERLAPPED at{};
  at.Offset = static_cast<DWORD>(offset);
  at.OffsetHigh = static_cast<DWORD>(offset >> 32);
  DWORD read = 0;
  if (ReadFile(AsHandle(handle_), out, static_cast<DWORD>(count), &read, &at) ==
          0 &&
      GetLastError() != ERROR_HANDLE_EOF) {
    return Failed("read failed");
  }
  return read;
#else
  while (true) {
    const ssize_t read = pread(static_cast<int>(handle_), out, count,
                               static_cast<off_t>(offset));
    if (read >= 0) return static_cast<std::size_t>(read);
    if (errno != EINTR) return Failed("read failed");
  }
#endif
}

absl::Status FileReader::ReadExactly(std::uint64_t offset, char* out,
                                     std::uint64_t size) const {
  while (size > 0) {
    const auto read = ReadSome(offset, out, size);
    if (!read.ok()) return read.status();
    if (*read == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(path_, ": the file ended while it was read"));
    }
    out += *read;
    offset += *read;
    size -= *read;
  }
  return absl::OkStatus();
}

std::FILE* OpenStream(const std::string& path) {
#ifdef _WIN32
  return _wfopen(Utf16(path).c_str(), L"rb");
#else
  return std::fopen(path.c_str(), "rb");
#endif
}

}  // namespace distorch
