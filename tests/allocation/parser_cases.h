// SPDX-License-Identifier: Apache-2.0
// Strings with what becomes of them: the table of parser_test.cc, and the seeds
// of parser_fuzzer.cc.
#ifndef DISTORCH_TESTS_ALLOCATION_PARSER_CASES_H_
#define DISTORCH_TESTS_ALLOCATION_PARSER_CASES_H_

#include <string_view>

namespace distorch {

// A string that is read, and the canonical text of what was read.
struct GoodCase {
  std::string_view text;
  std::string_view canonical;
};

inline constexpr GoodCase kGoodCases[] = {
    {"cuda:0,2.5gb;cuda:1,3.0g;cpu,*", "cuda:0,2.5gb;cuda:1,3gb;cpu,*"},
    {"cuda:0,2gb; cpu,*", "cuda:0,2gb;cpu,*"},
    {" \tCUDA : 0 , 2.5 GB ;\n cpu , * ; ", "cuda:0,2.5gb;cpu,*"},
    {"cuda,1gb", "cuda:0,1gb"},
    {"cuda:0,512mb", "cuda:0,512mb"},
    {"cuda:0,1 TiB", "cuda:0,1tb"},
    {"cuda:0,1tb", "cuda:0,1tb"},
    {"cuda:0,900k", "cuda:0,900kb"},
    {"cuda:0,1048576b", "cuda:0,1mb"},
    {"cuda:0,1048577b", "cuda:0,1048577b"},
    {"cuda:0,.5gb", "cuda:0,512mb"},
    {"cuda:0,5.gb", "cuda:0,5gb"},
    {"cuda:0,0b", "cuda:0,0b"},
    {"cuda:0,0.1gb", "cuda:0,107374182b"},
    {"cuda:0,4 GiB", "cuda:0,4gb"},
    {"cuda:0,3mib;xpu:1,4kib", "cuda:0,3mb;xpu:1,4kb"},
    {"cuda:0,8388607tb", "cuda:0,8388607tb"},
    {"cuda:0,25%;cpu,75%", "cuda:0,25%;cpu,75%"},
    {"cuda:0,1%;cpu,3%", "cuda:0,1%;cpu,3%"},
    {"cuda:0,33.333%;cpu,*", "cuda:0,33.333%;cpu,*"},
    {"cuda:0,50%;cpu,*", "cuda:0,50%;cpu,*"},
    {"cuda:0,100%;cpu,*", "cuda:0,100%;cpu,*"},
    {"cuda:0,80 %;cpu,80%", "cuda:0,80%;cpu,80%"},
    {"cuda:0,*", "cuda:0,*"},
    {"cuda:0,0.5;cpu,0.5", "cuda:0,0.5;cpu,0.5"},
    {"cuda:0,1;cpu,0", "cuda:0,1;cpu,0"},
    {"cuda:0,2gb;cuda:1,25%;cuda:2,0.1;cpu,*",
     "cuda:0,2gb;cuda:1,25%;cuda:2,0.1;cpu,*"},
    {"mps,50%;cpu,50%", "mps,50%;cpu,50%"},
    {"mps,0.5;cpu,0.5", "mps,0.5;cpu,0.5"},
    {"mlu:0,0.2", "mlu:0,0.2"},
    {"directml:0,30%", "privateuseone:0,30%"},
    {"npu:1,1gb;hpu:2,1gb;corex:3,1gb", "npu:1,1gb;hpu:2,1gb;cuda:3,1gb"},
    {"#ixuca:0;4;cpu", "#cuda:0;4gb;cpu"},
    {"cuda:0,500mb;cuda:1,3.0g;cpu,5gb*", "cuda:0,500mb;cuda:1,3gb;cpu,*"},
    {"cuda:0,2gb;cpu,50% * ", "cuda:0,2gb;cpu,*"},
    {"cuda:0,0.5*;cpu,1gb", "cuda:0,*;cpu,1gb"},
    {"cuda:1,8gb*,mode=migrate", "cuda:1,*,mode=migrate"},
    {"cuda:10,1gb;cuda:2,1gb", "cuda:10,1gb;cuda:2,1gb"},
    {"cpu:0,*", "cpu,*"},
    {"sim:1,4mb;cpu,*", "sim:1,4mb;cpu,*"},
    {"cuda:1,8gb,mode=migrate", "cuda:1,8gb,mode=migrate"},
    {"cuda:1,8gb , Mode = STREAM ; cpu,*,mode=auto",
     "cuda:1,8gb,mode=stream;cpu,*"},
    {"0.8", "0.8"},
    {" .25 ; ", "0.25"},
    {"1", "1"},
    {"0", "0"},
    {"auto", "auto"},
    {"AUTO;", "auto"},
    {"auto,reserve=1.5gb", "auto,reserve=1.5gb"},
    {"auto , reserve = 900 mb", "auto,reserve=900mb"},
    {"#cuda:0;4.0;cpu", "#cuda:0;4gb;cpu"},
    {"#cuda:0;4.5;cuda:1,cpu", "#cuda:0;4.5gb;cuda:1,cpu"},
    {" # cuda : 0 ; 512 mb ; cuda : 1 , cpu ; ", "#cuda:0;512mb;cuda:1,cpu"},
    {"#;4.0;", "#;4gb;cpu"},
    {"#cuda:1", "#cuda:1;0b;cpu"},
    {"#", "#;0b;cpu"},
    {"cuda:0,2gb;cpu,*#cuda:0;4.0;cpu", "cuda:0,2gb;cpu,*#cuda:0"},
    {"cuda:0,2gb;cpu,*;#cuda:1;", "cuda:0,2gb;cpu,*#cuda:1"},
    {"0.8#cuda:0;0.0;cpu", "0.8#cuda:0"},
    {"auto#cuda:0", "auto#cuda:0"},
    {"cuda:0,2gb#", "cuda:0,2gb"},
};

// A string that is refused, and the whole message. The kind "sim" is known
// beside the built-in ones.
struct BadCase {
  std::string_view text;
  std::string_view message;
};

// Every message begins with "allocation string: ", left out here.
#define EXPECTED_DEVICE                                                 \
  "one of cpu, mps, cuda, xpu, npu, mlu, hpu, directml, corex, ixuca, " \
  "privateuseone, sim (with an index as in cuda:0)"
#define EXPECTED_AMOUNT                                                       \
  "a size (2.5gb), a percentage of the model (25%), a share of the device's " \
  "memory (0 to 1) or *"

inline constexpr BadCase kBadCases[] = {
    {"",
     "the string is empty at offset 0; expected entries as in "
     "cuda:0,2.5gb;cpu,* or auto or a share as in 0.8\n"
     "  \n"
     "  ^"},
    {"   ",
     "the string is empty at offset 0; expected entries as in "
     "cuda:0,2.5gb;cpu,* or auto or a share as in 0.8\n"
     "     \n"
     "  ^"},
    {";",
     "';' stands where a device should be at offset 0; "
     "expected " EXPECTED_DEVICE "\n"
     "  ;\n"
     "  ^"},
    {"cuda:0,1gb;;",
     "';' stands where a device should be at offset 11; "
     "expected " EXPECTED_DEVICE "\n"
     "  cuda:0,1gb;;\n"
     "             ^"},
    {"cuda:0",
     "the string ends where an amount should be at offset 6; expected ',' and "
     "an amount as in cuda:0,2.5gb\n"
     "  cuda:0\n"
     "        ^"},
    {"cuda:0,",
     "the string ends where an amount should be at offset 7; "
     "expected " EXPECTED_AMOUNT "\n"
     "  cuda:0,\n"
     "         ^"},
    {"cuda:0,;cpu,*",
     "';' stands where an amount should be at offset 7; "
     "expected " EXPECTED_AMOUNT "\n"
     "  cuda:0,;cpu,*\n"
     "         ^"},
    {"cuda:0:2gb",
     "':' stands where an amount should be at offset 6; expected ',' and an "
     "amount as in cuda:0,2.5gb\n"
     "  cuda:0:2gb\n"
     "        ^"},
    {"cuda:,1gb",
     "',' stands where the index of a device should be at offset 5; expected a "
     "number as in cuda:0\n"
     "  cuda:,1gb\n"
     "       ^"},
    {"cuda:x,1gb",
     "'x' stands where the index of a device should be at offset 5; expected a "
     "number as in cuda:0\n"
     "  cuda:x,1gb\n"
     "       ^"},
    {"cuda:10000,1gb",
     "the index of a device is out of range at offset 5; expected 0 to 9999\n"
     "  cuda:10000,1gb\n"
     "       ^~~~~"},
    {"cpu:1,1gb",
     "cpu has no index at offset 4; expected cpu\n"
     "  cpu:1,1gb\n"
     "      ^"},
    {"gpu0,1gb",
     "unknown kind of device 'gpu0' at offset 0; expected " EXPECTED_DEVICE "\n"
     "  gpu0,1gb\n"
     "  ^~~~"},
    {"1gb",
     "an amount without a device at offset 0; expected a device before it, as "
     "in cuda:0,2.5gb\n"
     "  1gb\n"
     "  ^~~"},
    {"0.8 gb",
     "an amount without a device at offset 0; expected a device before it, as "
     "in cuda:0,2.5gb\n"
     "  0.8 gb\n"
     "  ^~~"},
    {"1.2",
     "a number without a unit is a share of the device's memory at offset 0; "
     "expected 0 to 1, or a unit as in 2.5gb, or %\n"
     "  1.2\n"
     "  ^~~"},
    {"-0.5",
     "'-0.5' stands where a device should be at offset 0; "
     "expected " EXPECTED_DEVICE "\n"
     "  -0.5\n"
     "  ^~~~"},
    {"nan",
     "unknown kind of device 'nan' at offset 0; expected " EXPECTED_DEVICE "\n"
     "  nan\n"
     "  ^~~"},
    {"cuda:0,1.5xyz;cpu,*",
     "unknown unit 'xyz' at offset 10; expected b, kb, mb, gb, tb or %\n"
     "  cuda:0,1.5xyz;cpu,*\n"
     "            ^~~"},
    {"cuda:0,1pb",
     "unknown unit 'pb' at offset 8; expected b, kb, mb, gb, tb or %\n"
     "  cuda:0,1pb\n"
     "          ^~"},
    {"cuda:0,1gbb",
     "unknown unit 'gbb' at offset 8; expected b, kb, mb, gb, tb or %\n"
     "  cuda:0,1gbb\n"
     "          ^~~"},
    {"cuda:0,-1gb",
     "the amount is negative at offset 7; expected " EXPECTED_AMOUNT "\n"
     "  cuda:0,-1gb\n"
     "         ^~~~"},
    {"cuda:0,+1gb",
     "'+1gb' stands where an amount should be at offset 7; "
     "expected " EXPECTED_AMOUNT "\n"
     "  cuda:0,+1gb\n"
     "         ^~~~"},
    {"cuda:0,nan",
     "nan is not a number at offset 7; expected " EXPECTED_AMOUNT "\n"
     "  cuda:0,nan\n"
     "         ^~~"},
    {"cuda:0,NaN",
     "nan is not a number at offset 7; expected " EXPECTED_AMOUNT "\n"
     "  cuda:0,NaN\n"
     "         ^~~"},
    {"cuda:0,inf",
     "'inf' stands where an amount should be at offset 7; "
     "expected " EXPECTED_AMOUNT "\n"
     "  cuda:0,inf\n"
     "         ^~~"},
    {"cuda:0,abc",
     "'abc' stands where an amount should be at offset 7; "
     "expected " EXPECTED_AMOUNT "\n"
     "  cuda:0,abc\n"
     "         ^~~"},
    {"cuda:0,1e3",
     "unknown unit 'e3' at offset 8; expected b, kb, mb, gb, tb or %\n"
     "  cuda:0,1e3\n"
     "          ^~"},
    {"cuda:0,.gb",
     "'.gb' stands where an amount should be at offset 7; "
     "expected " EXPECTED_AMOUNT "\n"
     "  cuda:0,.gb\n"
     "         ^~~"},
    {"cuda:0,4",
     "a number without a unit is a share of the device's memory at offset 7; "
     "expected 0 to 1, or a unit as in 2.5gb, or %\n"
     "  cuda:0,4\n"
     "         ^"},
    {"cuda:0,1.0001",
     "a number without a unit is a share of the device's memory at offset 7; "
     "expected 0 to 1, or a unit as in 2.5gb, or %\n"
     "  cuda:0,1.0001\n"
     "         ^~~~~~"},
    {"cuda:0,2,5gb",
     "a number without a unit is a share of the device's memory at offset 7; "
     "expected 0 to 1, or a unit as in 2.5gb, or %\n"
     "  cuda:0,2,5gb\n"
     "         ^"},
    {"cuda:0,2gb*;cpu,5gb*",
     "a second * at offset 16; expected * at most once\n"
     "  cuda:0,2gb*;cpu,5gb*\n"
     "                  ^~~"},
    {"cuda:0,5xyz*",
     "unknown unit 'xyz' at offset 8; expected b, kb, mb, gb, tb or %\n"
     "  cuda:0,5xyz*\n"
     "          ^~~"},
    {"corex:0,1gb;cuda:0,2gb",
     "device cuda:0 appears a second time at offset 12; expected each device "
     "once\n"
     "  corex:0,1gb;cuda:0,2gb\n"
     "              ^~~~~~"},
    {"cpu,**",
     "'*' stands where the next entry should be at offset 5; expected ';' or "
     "the end\n"
     "  cpu,**\n"
     "       ^"},
    {"cuda:0,1gb cuda:1,1gb",
     "'cuda' stands where the next entry should be at offset 11; expected ';' "
     "or the end\n"
     "  cuda:0,1gb cuda:1,1gb\n"
     "             ^~~~"},
    {"cuda:0,1gb;cuda:0,2gb",
     "device cuda:0 appears a second time at offset 11; expected each device "
     "once\n"
     "  cuda:0,1gb;cuda:0,2gb\n"
     "             ^~~~~~"},
    {"cuda,1gb;cuda:0,2gb",
     "device cuda:0 appears a second time at offset 9; expected each device "
     "once\n"
     "  cuda,1gb;cuda:0,2gb\n"
     "           ^~~~~~"},
    {"cuda:0,*;cpu,*",
     "a second * at offset 13; expected * at most once\n"
     "  cuda:0,*;cpu,*\n"
     "               ^"},
    {"cuda:0,60%;cuda:1,60%;cpu,*",
     "the percentages add up to more than 100 and leave no rest at offset 18; "
     "expected at most 100% beside *, or no *\n"
     "  cuda:0,60%;cuda:1,60%;cpu,*\n"
     "                    ^~"},
    {"cuda:0,0%;cpu,0%",
     "the percentages add up to 0 at offset 7; expected one of them above 0%\n"
     "  cuda:0,0%;cpu,0%\n"
     "         ^"},
    {"cuda:0,1000001%",
     "the percentage is out of range at offset 7; expected 0% to 1000000%\n"
     "  cuda:0,1000001%\n"
     "         ^~~~~~~"},
    {"cuda:0,99999999999999999999gb",
     "the number is out of range at offset 7; expected " EXPECTED_AMOUNT "\n"
     "  cuda:0,99999999999999999999gb\n"
     "         ^~~~~~~~~~~~~~~~~~~~~~"},
    {"cuda:0,8388608tb",
     "the size is out of range at offset 7; expected less than 8 million tb\n"
     "  cuda:0,8388608tb\n"
     "         ^~~~~~~~~"},
    {"cuda:0,1gb,mode=fast",
     "unknown mode at offset 16; expected auto, stream or migrate\n"
     "  cuda:0,1gb,mode=fast\n"
     "                  ^~~~"},
    {"cuda:0,1gb,mode",
     "unknown option of an entry at offset 11; expected mode=auto, mode=stream "
     "or mode=migrate\n"
     "  cuda:0,1gb,mode\n"
     "             ^~~~"},
    {"cuda:0,1gb,speed=1",
     "unknown option of an entry at offset 11; expected mode=auto, mode=stream "
     "or mode=migrate\n"
     "  cuda:0,1gb,speed=1\n"
     "             ^~~~~"},
    {"cuda:0,5gb,9",
     "a second number at offset 11; expected a point for decimals as in "
     "2.5gb, or ';' and the next entry\n"
     "  cuda:0,5gb,9\n"
     "             ^"},
    {"cuda:0,5gb,0",
     "a second number at offset 11; expected a point for decimals as in "
     "2.5gb, or ';' and the next entry\n"
     "  cuda:0,5gb,0\n"
     "             ^"},
    {"cuda:0,5gb,:",
     "unknown option of an entry at offset 11; expected mode=auto, mode=stream "
     "or mode=migrate\n"
     "  cuda:0,5gb,:\n"
     "             ^"},
    {"cuda:0,5gb,/",
     "unknown option of an entry at offset 11; expected mode=auto, mode=stream "
     "or mode=migrate\n"
     "  cuda:0,5gb,/\n"
     "             ^"},
    {"auto,reserve=5",
     "the string ends where a unit should be at offset 14; expected b, kb, mb, "
     "gb, tb\n"
     "  auto,reserve=5\n"
     "                ^"},
    {"auto,foo=1",
     "unknown option of auto at offset 5; expected reserve=SIZE as in "
     "reserve=1.5gb\n"
     "  auto,foo=1\n"
     "       ^~~"},
    {"auto,reserve",
     "unknown option of auto at offset 5; expected reserve=SIZE as in "
     "reserve=1.5gb\n"
     "  auto,reserve\n"
     "       ^~~~~~~"},
    {"auto cuda:0,1gb",
     "'cuda' stands where the end should be at offset 5; expected nothing "
     "more\n"
     "  auto cuda:0,1gb\n"
     "       ^~~~"},
    {"#cuda:0;x;cpu",
     "'x' stands where an amount should be at offset 8; expected gigabytes of "
     "virtual VRAM as in 4.0\n"
     "  #cuda:0;x;cpu\n"
     "          ^"},
    {"#cuda:0;4;cpu,cpu",
     "donor cpu appears a second time at offset 14; expected each donor once\n"
     "  #cuda:0;4;cpu,cpu\n"
     "                ^~~"},
    {"#cuda:0;-4;cpu",
     "the amount is negative at offset 8; expected gigabytes of virtual VRAM "
     "as in 4.0\n"
     "  #cuda:0;-4;cpu\n"
     "          ^~"},
    {"#cuda:0;4;cpu;cpu",
     "'cpu' stands where the end should be at offset 14; expected nothing "
     "more\n"
     "  #cuda:0;4;cpu;cpu\n"
     "                ^~~"},
    {"#cuda:0;4;gpu",
     "unknown kind of device 'gpu' at offset 10; expected " EXPECTED_DEVICE "\n"
     "  #cuda:0;4;gpu\n"
     "            ^~~"},
    {"#cuda:0;9000000000;cpu",
     "the size is out of range at offset 8; expected less than 8 billion gb\n"
     "  #cuda:0;9000000000;cpu\n"
     "          ^~~~~~~~~~"},
    {"##",
     "'#' stands where a device should be at offset 1; "
     "expected " EXPECTED_DEVICE "\n"
     "  ##\n"
     "   ^"},
    {"cuda:0,1gb#cuda:0#",
     "'#' stands where the end should be at offset 17; expected nothing more\n"
     "  cuda:0,1gb#cuda:0#\n"
     "                   ^"},
    {"cuda:0,1gb;\001",
     "'\001' stands where a device should be at offset 11; "
     "expected " EXPECTED_DEVICE "\n"
     "  cuda:0,1gb; \n"
     "             ^"},
    {"cüda:0,1gb",
     "unknown kind of device 'c' at offset 0; expected " EXPECTED_DEVICE "\n"
     "  cüda:0,1gb\n"
     "  ^"},
};

#undef EXPECTED_DEVICE
#undef EXPECTED_AMOUNT

}  // namespace distorch

#endif  // DISTORCH_TESTS_ALLOCATION_PARSER_CASES_H_
