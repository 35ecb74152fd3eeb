// SPDX-License-Identifier: Apache-2.0
#include "distorch/device/shared_library.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

namespace distorch {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

#ifdef _WIN32
constexpr char kSystem[] = "kernel32.dll";
constexpr char kFunction[] = "GetCurrentProcessId";
#else
constexpr char kSystem[] = "libc.so.6";
constexpr char kFunction[] = "getpid";
#endif

TEST(SharedLibraryTest, TakesTheFirstThatIsThere) {
  const SharedLibrary library =
      SharedLibrary::Open({"/nowhere/libx.so", kSystem});
  ASSERT_TRUE(library.ok());
  EXPECT_EQ(library.name(), kSystem);
}

TEST(SharedLibraryTest, BindsFunctionsAndNotesWhatIsMissing) {
  const SharedLibrary library = SharedLibrary::Open({kSystem});
  std::function<int()> process;
  std::function<int()> none;
  std::vector<std::string> missing;
  library.Bind(kFunction, process, &missing);
  library.Bind("no_such_function", none, &missing);
  ASSERT_TRUE(process);
  EXPECT_GT(process(), 0);
  EXPECT_FALSE(none);
  EXPECT_THAT(missing, ElementsAre("no_such_function"));
}

TEST(SharedLibraryTest, HasNoFunctionsWhereThereIsNoLibrary) {
  // The second is no library, by a name that is not ASCII.
  const SharedLibrary library =
      SharedLibrary::Open({"no_such_library", "/nowhere/\xc3\xa4.so"});
  std::function<int()> none;
  std::vector<std::string> missing;
  library.Bind(kFunction, none, &missing);
  EXPECT_FALSE(library.ok());
  EXPECT_THAT(library.name(), IsEmpty());
  EXPECT_FALSE(none);
  EXPECT_THAT(missing, ElementsAre(kFunction));
}

}  // namespace
}  // namespace distorch
