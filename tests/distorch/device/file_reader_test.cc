// SPDX-License-Identifier: Apache-2.0
#include "distorch/device/file_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#ifndef _WIN32
#include <sys/stat.h>
#endif

#include <array>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>

namespace distorch {
namespace {

using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

// A folder of this test's own, of a name that is neither ASCII nor Latin-1.
class FileReaderTest : public testing::Test {
 protected:
  FileReaderTest() {
    folder_ = std::filesystem::path(testing::TempDir()) /
              ("file_reader_" + std::to_string(std::random_device{}())) /
              std::filesystem::path(u8"m\u00f6d\u03b5l \u6a21");
    std::filesystem::create_directories(folder_);
  }
  ~FileReaderTest() override {
    std::filesystem::remove_all(folder_.parent_path());
  }

  // UTF-8 path of the file `name`.
  std::string Path(const std::string& name) const {
    const std::u8string path = (folder_ / name).u8string();
    return {path.begin(), path.end()};
  }
  std::string Write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name, std::ios::binary) << text;
    return Path(name);
  }
  static std::string Message(const absl::Status& status) {
    return std::string(status.message());
  }

 private:
  std::filesystem::path folder_;
};

TEST_F(FileReaderTest, ReadsByUtf8PathAtOffsets) {
  const std::string text("a\r\n\x1a\0z", 6);  // as it is: no text mode
  const auto file = FileReader::Open(Write("x.bin", text));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->size(), 6u);
  std::string got(4, '?');
  ASSERT_TRUE(file->ReadExactly(2, got.data(), got.size()).ok());
  EXPECT_EQ(got, text.substr(2));
  std::array<char, 8> more{};
  EXPECT_EQ(*file->ReadSome(4, more.data(), more.size()), 2u);
  EXPECT_EQ(*file->ReadSome(6, more.data(), more.size()), 0u);
}

TEST_F(FileReaderTest, SaysWhenTheFileEndsBefore) {
  const std::string path = Write("short", "abc");
  const auto file = FileReader::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  std::array<char, 4> got{};
  EXPECT_EQ(
      file->ReadExactly(0, got.data(), got.size()),
      absl::InvalidArgumentError(path + ": the file ended while it was read"));
}

TEST_F(FileReaderTest, RefusesWhatIsNoFileWithoutWaiting) {
  const absl::Status none = FileReader::Open(Path("none")).status();
  EXPECT_EQ(none.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(none), StartsWith(Path("none") + ": cannot be opened: "));
  const std::string folder = Path("");
  EXPECT_EQ(FileReader::Open(folder).status(),
            absl::InvalidArgumentError(folder + ": not a regular file"));
#ifdef _WIN32
  EXPECT_THAT(Message(FileReader::Open("NUL").status()),
              EndsWith("not a regular file"));
#else
  EXPECT_THAT(Message(FileReader::Open("/dev/zero").status()),
              EndsWith("not a regular file"));
  ASSERT_EQ(mkfifo(Path("pipe").c_str(), 0600), 0);
  EXPECT_THAT(Message(FileReader::Open(Path("pipe")).status()),
              EndsWith("not a regular file"));
#endif
}

TEST_F(FileReaderTest, OpensStreamsByUtf8Path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> stream(
      OpenStream(Write("log", "1\r\n")), &std::fclose);
  ASSERT_NE(stream, nullptr);
  std::array<char, 8> got{};
  EXPECT_EQ(std::fread(got.data(), 1, got.size(), stream.get()), 3u);
  EXPECT_EQ(OpenStream(Path("none")), nullptr);
  EXPECT_EQ(errno, ENOENT);
}

}  // namespace
}  // namespace distorch
