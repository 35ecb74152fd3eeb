// SPDX-License-Identifier: Apache-2.0
// The two lines that point into an allocation string: internal to the parser.
#ifndef DISTORCH_ALLOCATION_PARSE_ERROR_H_
#define DISTORCH_ALLOCATION_PARSE_ERROR_H_

#include <cstddef>
#include <string>
#include <string_view>

namespace distorch::parser_internal {

//   CaretLines("cuda:0,1xb", 8, 2) == "  cuda:0,1xb\n"
//                                     "          ^~"
// At most about 60 characters on each side of the mark are shown ("..." for
// the rest), control characters as spaces. A mark is at least one wide.
// Requires offset <= text.size().
std::string CaretLines(std::string_view text, size_t offset, size_t length);

}  // namespace distorch::parser_internal

#endif  // DISTORCH_ALLOCATION_PARSE_ERROR_H_
