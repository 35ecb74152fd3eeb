// SPDX-License-Identifier: Apache-2.0
// Text for Windows' own functions, which take UTF-16. Windows alone.
#ifndef DISTORCH_DEVICE_WINDOWS_TEXT_H_
#define DISTORCH_DEVICE_WINDOWS_TEXT_H_

#include <string>
#include <string_view>

namespace distorch {

// UTF-8 as UTF-16; what is no UTF-8 becomes U+FFFD, which no file's name has.
std::wstring Utf16(std::string_view utf8);

}  // namespace distorch

#endif  // DISTORCH_DEVICE_WINDOWS_TEXT_H_
