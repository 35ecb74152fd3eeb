// SPDX-License-Identifier: Apache-2.0
#include "distorch/telemetry/safetensors_header.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#ifdef __linux__
#include <sys/resource.h>
#endif

#include <ctime>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace distorch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// {"dtype":DTYPE,"shape":SHAPE,"data_offsets":[BEGIN,END]}
std::string Entry(std::string_view dtype, std::string_view shape,
                  uint64_t begin, uint64_t end) {
  return absl::StrCat("{\"dtype\":\"", std::string(dtype),
                      "\",\"shape\":", std::string(shape),
                      ",\"data_offsets\":[", begin, ",", end, "]}");
}

std::string FileBytes(std::string_view header, size_t data_bytes,
                      uint64_t claimed_length) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) {
    bytes.push_back(static_cast<char>(claimed_length >> (8 * i) & 0xff));
  }
  bytes += header;
  bytes.append(data_bytes, 'x');
  return bytes;
}

// A file that is removed at the end of the test.
class TempFile {
 public:
  explicit TempFile(const std::string& content) {
    path_ = testing::TempDir() + "distorch_header_" +
            std::to_string(std::random_device{}());
    std::ofstream(path_, std::ios::binary) << content;
  }
  ~TempFile() { std::filesystem::remove(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

TEST(SafetensorsHeaderTest, ReadsTensorsMetadataAndTheExampleOfItsComment) {
  const std::string json = absl::StrCat(
      R"({"__metadata__":{"modelspec.title":"A\u00e9","b":""},"w":)",
      Entry("BF16", "[3, 2]", 4, 16), ",\"bias\":", Entry("F32", "[]", 0, 4),
      "}   ");
  const TempFile file(FileBytes(json, 16, json.size()));
  const auto header = SafetensorsHeader::ReadFile(file.path());
  ASSERT_TRUE(header.ok()) << header.status();
  ASSERT_EQ(header->size(), 2u);
  EXPECT_EQ(header->name(0), "bias");
  EXPECT_EQ(header->dtype(0).name, "F32");
  EXPECT_THAT(header->shape(0), IsEmpty());
  EXPECT_EQ(header->name(1), "w");
  EXPECT_THAT(header->shape(1), ElementsAre(3, 2));
  EXPECT_EQ(header->begin(1), 4u);
  EXPECT_EQ(header->end(1), 16u);
  ASSERT_EQ(header->metadata_size(), 2u);
  EXPECT_EQ(header->metadata(0).first, "modelspec.title");
  EXPECT_EQ(header->metadata(0).second, "A\xc3\xa9");
  EXPECT_EQ(header->header_bytes(), json.size());
}

TEST(SafetensorsHeaderTest, KnowsEveryTypeOfTheFormat) {
  const std::vector<std::pair<std::string, uint64_t>> bytes_of_four = {
      {"BOOL", 4},        {"F4", 2},          {"F6_E2M3", 3}, {"F6_E3M2", 3},
      {"U8", 4},          {"I8", 4},          {"F8_E5M2", 4}, {"F8_E4M3", 4},
      {"F8_E8M0", 4},     {"F8_E4M3FNUZ", 4}, {"I16", 8},     {"U16", 8},
      {"F8_E5M2FNUZ", 4}, {"F16", 8},         {"BF16", 8},    {"I32", 16},
      {"U32", 16},        {"F32", 16},        {"C64", 32},    {"F64", 32},
      {"I64", 32},        {"U64", 32}};
  for (const auto& [dtype, bytes] : bytes_of_four) {
    const auto header = SafetensorsHeader::Parse(
        absl::StrCat("{\"a\":", Entry(dtype, "[2,2]", 0, bytes), "}"), bytes);
    ASSERT_TRUE(header.ok()) << dtype << ": " << header.status();
    EXPECT_EQ(header->dtype(0).name, dtype);
  }
}

TEST(SafetensorsHeaderTest, TakesWhatIsOddButAllowed) {
  const struct {
    std::string json;
    uint64_t data_bytes;
    size_t tensors;
  } cases[] = {
      {"{}", 0, 0},
      {"{\"__metadata__\":{}}", 0, 0},
      {"{\"\":" + Entry("U8", "[0]", 0, 0) + "}", 0, 1},
      {"{\"a\":" + Entry("U8", "[0,5]", 3, 3) +
           ",\"b\":" + Entry("U8", "[3]", 0, 3) +
           ",\"c\":" + Entry("U8", "[0]", 0, 0) + "}",
       3, 3},
      {"{ \"a\"\t:\n" + Entry("U8", "[ 1 , 2 ]", 0, 2) + "\r\n } ", 2, 1},
      {R"({"a":{"x":[{"y":[1.5e3,null,true,"\n"]}],"dtype":"U8",)"
       R"("shape":[1],"data_offsets":[0,1],"z":{}}})",
       1, 1},
  };
  for (const auto& c : cases) {
    const auto header = SafetensorsHeader::Parse(c.json, c.data_bytes);
    ASSERT_TRUE(header.ok()) << c.json << ": " << header.status();
    EXPECT_EQ(header->size(), c.tensors) << c.json;
  }
}

struct Attack {
  const char* name;
  std::string json;
  uint64_t data_bytes;
  const char* message;
};

class SafetensorsAttackTest : public ::testing::TestWithParam<Attack> {};

TEST_P(SafetensorsAttackTest, IsRefusedWithItsReason) {
  const auto header =
      SafetensorsHeader::Parse(GetParam().json, GetParam().data_bytes);
  ASSERT_FALSE(header.ok());
  EXPECT_EQ(header.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(header.status().message()),
              HasSubstr(GetParam().message));
}

std::string One(std::string_view dtype, std::string_view shape, uint64_t begin,
                uint64_t end) {
  return "{\"a\":" + Entry(dtype, shape, begin, end) + "}";
}

std::string Two(const std::string& a, const std::string& b) {
  return "{\"a\":" + a + ",\"b\":" + b + "}";
}

std::string Nested(int depth) {
  return "{\"a\":{\"x\":" + std::string(static_cast<size_t>(depth), '[') + "1" +
         std::string(static_cast<size_t>(depth), ']') + "}}";
}

INSTANTIATE_TEST_SUITE_P(
    Corpus, SafetensorsAttackTest,
    ::testing::Values(
        // The product wraps to a small number in 64 bits (safetensors-cpp).
        Attack{"ShapeProductWraps",
               One("U8", "[4194305,4194305,211106198978564]", 0, 4), 4,
               "byte 59: the shape's size overflows"},
        Attack{"ShapeOverflowHiddenByZero",
               One("U8", "[0,4294967296,4294967296]", 0, 0), 0, "overflows"},
        Attack{"ShapeOverflowThenZero",
               One("U8", "[4294967296,4294967296,0]", 0, 0), 0, "overflows"},
        Attack{"BitsOverflow", One("F64", "[2305843009213693952]", 0, 0), 0,
               "overflows"},
        Attack{"DimensionBeyondInt64", One("U8", "[9223372036854775808]", 0, 0),
               0, "number beyond 2^63-1"},
        Attack{"NegativeDimension", One("U8", "[-1]", 0, 1), 1,
               "expected a whole number of 0 or more"},
        Attack{"FractionDimension", One("U8", "[1.0]", 0, 1), 1,
               "expected a whole number"},
        Attack{"ExponentDimension", One("U8", "[1e0]", 0, 1), 1,
               "expected a whole number"},
        Attack{"LeadingZero", One("U8", "[01]", 0, 1), 1,
               "number with a leading zero"},
        Attack{"Overlap",
               Two(Entry("U8", "[4]", 0, 4), Entry("U8", "[4]", 2, 6)), 6,
               "tensor 'b': overlaps the tensor before it: starts at 2"},
        Attack{"SameBytesTwice",
               Two(Entry("U8", "[4]", 0, 4), Entry("U8", "[4]", 0, 4)), 4,
               "overlaps"},
        Attack{"EmptyTensorInsideAnother",
               Two(Entry("U8", "[4]", 0, 4), Entry("U8", "[0]", 2, 2)), 4,
               "tensor 'b': overlaps"},
        Attack{"EmptyTensorBeyondTheEnd",
               Two(Entry("U8", "[4]", 0, 4), Entry("U8", "[0]", 9, 9)), 4,
               "tensor 'b': leaves a hole"},
        Attack{"Hole", Two(Entry("U8", "[4]", 0, 4), Entry("U8", "[4]", 5, 9)),
               9,
               "tensor 'b': leaves a hole before it: starts at 5, expected 4"},
        Attack{"HoleAtTheStart", One("U8", "[4]", 1, 5), 5, "leaves a hole"},
        Attack{"BytesLeftOver", One("U8", "[4]", 0, 4), 5,
               "tensors end at byte 4, the file has 5: bytes are left over"},
        Attack{"Truncated", One("U8", "[4]", 0, 4), 3, "truncated"},
        Attack{"NothingButData", "{}", 1, "bytes are left over"},
        Attack{"BackwardOffsets", One("U8", "[4]", 4, 0), 4, "do not match"},
        Attack{"OffsetsTooShort", One("F32", "[2]", 0, 4), 4,
               "tensor 'a': data_offsets [0,4] do not match its shape of 8"},
        Attack{"SubByteNotOnAByte", One("F4", "[3]", 0, 1), 1,
               "tensor 'a' does not end on a byte"},
        Attack{"SixBitNotOnAByte", One("F6_E2M3", "[2]", 0, 1), 1,
               "does not end on a byte"},
        Attack{"UnknownDtype", One("F7", "[1]", 0, 1), 1, "unknown dtype 'F7'"},
        Attack{"LowerCaseDtype", One("f32", "[1]", 0, 4), 4,
               "unknown dtype 'f32'"},
        Attack{"DtypeIsANumber",
               R"({"a":{"dtype":1,"shape":[1],"data_offsets":[0,1]}})", 1,
               "expected a string"},
        Attack{"SameNameTwice",
               "{\"a\":" + Entry("U8", "[1]", 0, 1) +
                   ",\"a\":" + Entry("U8", "[1]", 1, 2) + "}",
               2, "'a' is given twice"},
        Attack{"SameNameEscaped",
               "{\"a\":" + Entry("U8", "[1]", 0, 1) +
                   ",\"\\u0061\":" + Entry("U8", "[1]", 1, 2) + "}",
               2, "'a' is given twice"},
        Attack{"SameMetadataTwice", R"({"__metadata__":{"k":"1","k":"2"}})", 0,
               "'k' is given twice"},
        Attack{"MetadataTwice", R"({"__metadata__":{},"__metadata__":{}})", 0,
               "second __metadata__"},
        Attack{"SameKeyTwice",
               R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],)"
               R"("data_offsets":[0,1]}})",
               1, "key given twice"},
        Attack{"NoDtype", R"({"a":{"shape":[1],"data_offsets":[0,1]}})", 1,
               "tensor 'a' lacks dtype, shape or data_offsets"},
        Attack{"NoShape", R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1,
               "lacks dtype, shape"},
        Attack{"NoOffsets", R"({"a":{"dtype":"U8","shape":[1]}})", 1,
               "lacks dtype, shape"},
        Attack{"ThreeOffsets",
               R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}})", 1,
               "expected ']'"},
        Attack{"MetadataNumber", R"({"__metadata__":{"k":1}})", 0,
               "expected a string"},
        Attack{"MetadataObject", R"({"__metadata__":{"k":{}}})", 0,
               "expected a string"},
        Attack{"MetadataNull", R"({"__metadata__":null})", 0, "expected '{'"},
        Attack{"EmptyText", "", 0, "starts with '{'"},
        Attack{"LeadingSpace", " {}", 0, "starts with '{'"},
        Attack{"Array", "[]", 0, "starts with '{'"},
        Attack{"TextBehind", "{}x", 0, "byte 2: text after the header"},
        Attack{"ZeroBehind", std::string("{}\0", 3), 0, "text after"},
        Attack{"TrailingComma", R"({"a":)" + Entry("U8", "[1]", 0, 1) + ",}", 1,
               "expected a string"},
        Attack{"TrailingCommaInShape", One("U8", "[1,]", 0, 1), 1,
               "expected a whole number"},
        Attack{"SingleQuotes", "{'a':1}", 0, "expected a string"},
        Attack{"Comment", "{/**/}", 0, "expected a string"},
        Attack{"Unfinished", R"({"a":{"dtype":"U8)", 0,
               "string without an end"},
        Attack{"UnfinishedEscape", "{\"a\\", 0, "string without an end"},
        Attack{"BadEscape", R"({"\x":1})", 0, "bad escape"},
        Attack{"BadHex", R"({"\u00g0":1})", 0, "bad \\u escape"},
        Attack{"LoneHighSurrogate", R"({"\ud800":1})", 0, "lone surrogate"},
        Attack{"LoneLowSurrogate", R"({"\udc00":1})", 0, "lone surrogate"},
        Attack{"OverlongUtf8", "{\"\xc0\xaf\":1}", 0, "bad UTF-8"},
        Attack{"SurrogateUtf8", "{\"\xed\xa0\x80\":1}", 0, "bad UTF-8"},
        Attack{"CutUtf8", "{\"\xe2\x82\":1}", 0, "bad UTF-8"},
        Attack{"NewLineInName", "{\"a\nb\":1}", 0,
               "control character in a string"},
        Attack{"DeepNesting", Nested(1'000'000), 0, "nested too deep"},
        Attack{"DeepBrackets", std::string(1'000'000, '['), 0,
               "starts with '{'"},
        Attack{"DeepObjects",
               "{\"a\":{\"x\":" +
                   [] {
                     std::string s;
                     for (int i = 0; i < 100'000; ++i) s += "{\"x\":";
                     return s;
                   }(),
               0, "nested too deep"},
        Attack{"NotANumberInUnknownKey", R"({"a":{"x":NaN}})", 0,
               "expected a value"},
        Attack{"HalfNumberInUnknownKey", R"({"a":{"x":1.}})", 0, "bad number"}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(SafetensorsFileTest, RefusesLengthsThatLie) {
  const struct {
    std::string bytes;
    const char* message;
  } cases[] = {
      {"", "0 bytes, too short for a header"},
      {"1234567", "7 bytes, too short for a header"},
      {FileBytes("{}", 0, 3), "the file is truncated"},
      {FileBytes("{}", 0, 100'000'001), "the format allows 100000000"},
      {FileBytes("{}", 0, 100'000'000), "the file is truncated"},
      {FileBytes("{}", 0, ~uint64_t{0}), "the format allows 100000000"},
      {FileBytes("{}", 0, uint64_t{1} << 63), "the format allows 100000000"},
      {FileBytes("{}", 0, 0), "a safetensors header starts with '{'"},
      {FileBytes("{}", 0, 1), "expected a string"},
      {"PK\x03\x04 this is a zip file, as torch.save makes",
       "is this a safetensors file?"},
  };
  for (const auto& c : cases) {
    const TempFile file(c.bytes);
    const auto header = SafetensorsHeader::ReadFile(file.path());
    ASSERT_FALSE(header.ok()) << c.message;
    EXPECT_THAT(std::string(header.status().message()), HasSubstr(c.message));
    EXPECT_THAT(std::string(header.status().message()), HasSubstr(file.path()));
  }
}

TEST(SafetensorsFileTest, HasNoEndOfMetadata) {
  std::string json = R"({"__metadata__":{"a":"")";
  for (size_t i = 0; i < SafetensorsHeader::kMaxMetadata; ++i) {
    json += R"(,"a":"")";
  }
  json += "}}";
  const TempFile file(FileBytes(json, 0, json.size()));
  const auto header = SafetensorsHeader::ReadFile(file.path());
  EXPECT_THAT(std::string(header.status().message()),
              HasSubstr("too many metadata"));
}

TEST(SafetensorsFileTest, PassesOnThatThereIsNoFile) {
  EXPECT_EQ(SafetensorsHeader::ReadFile("/nowhere/x").status().code(),
            absl::StatusCode::kNotFound);
}

#ifdef __linux__
// Peak resident bytes of this process.
uint64_t PeakResident() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}
#endif

// The worst header of 100 MB: as many tensors as fit, in the wrong order.
TEST(SafetensorsFileTest, LargestHeaderCostsASecondAndTwiceItsBytes) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers change time and memory";
#endif
  std::string json = "{";
  json.reserve(SafetensorsHeader::kMaxHeaderBytes);
  size_t count = 0;
  while (json.size() < SafetensorsHeader::kMaxHeaderBytes - 100) {
    absl::StrAppend(&json, count == 0 ? "\"" : ",\"",
                    absl::Hex(count * 2654435761u % (1u << 24)), "\":",
                    "{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}");
    ++count;
  }
  json += "}";
  const size_t header_bytes = json.size();
  const TempFile file(FileBytes(json, 0, header_bytes));
  json = std::string();
#ifdef __linux__
  const uint64_t before = PeakResident();
#endif
  // The text above has been resident already: only what goes beyond it shows.
  const std::clock_t start = std::clock();  // of this process: others may run
  const auto header = SafetensorsHeader::ReadFile(file.path());
  const double seconds =
      static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->size(), count);
#ifdef __linux__
  EXPECT_LE(PeakResident(), before + header_bytes);
#endif
  RecordProperty("seconds", std::to_string(seconds));
#ifdef NDEBUG
  EXPECT_LT(seconds, 1.5);
#endif
}

}  // namespace
}  // namespace distorch
