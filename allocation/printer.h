// SPDX-License-Identifier: Apache-2.0
// Prints a spec as the string that ParseSpec reads back: for every spec that
// keeps the rules of allocation/spec.h, ParseSpec(FormatSpec(spec)) == spec.
//
//   FormatSpec(*ParseSpec(" CUDA,2560MB ; cpu,* ; "))   // "cuda:0,2.5gb;cpu,*"
#ifndef DISTORCH_ALLOCATION_PRINTER_H_
#define DISTORCH_ALLOCATION_PRINTER_H_

#include <string>

#include "allocation/bytes.h"
#include "allocation/spec.h"

namespace distorch {

std::string FormatSpec(const Spec& spec);

// An exact size in the largest unit that needs at most three decimals:
// "2.5gb", "512mb", "1048577b". Requires size >= 0.
std::string FormatExactSize(Bytes size);

// "2.5gb", "25%", "0.8", "*".
std::string FormatAmount(const Amount& amount);

// A number of billionths as a decimal: 2'500'000'000 is "2.5".
std::string FormatBillionths(int64_t billionths);

}  // namespace distorch

#endif  // DISTORCH_ALLOCATION_PRINTER_H_
