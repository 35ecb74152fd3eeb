// SPDX-License-Identifier: Apache-2.0
// The grammar of allocation/parser.h once more, the obvious way: the string is
// cut into tokens, those at ';' and at ',', and every piece is compared with
// what may stand there. Says nothing of where a string is wrong. For tests of
// the parser against it.
#ifndef DISTORCH_TESTS_ALLOCATION_SLOW_PARSER_H_
#define DISTORCH_TESTS_ALLOCATION_SLOW_PARSER_H_

#include <optional>
#include <random>
#include <string>
#include <string_view>

#include "allocation/parser.h"
#include "allocation/spec.h"

namespace distorch::testing {

std::optional<Spec> ParseSlowly(std::string_view text,
                                const ParseOptions& options);

// A string that is right, or nearly so.
std::string RandomString(std::mt19937& random);

}  // namespace distorch::testing

#endif  // DISTORCH_TESTS_ALLOCATION_SLOW_PARSER_H_
