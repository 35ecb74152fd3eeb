# SPDX-License-Identifier: Apache-2.0
"""tools/doxygen_comments.py: plain comments as Doxygen reads them. `make reference` runs it over every header."""

from __future__ import annotations

import runpy
from pathlib import Path

TOOL = Path(__file__).resolve().parents[3] / "tools" / "doxygen_comments.py"

HEADER = """\
// SPDX-License-Identifier: Apache-2.0
// What it is, of std::vector<int>.
//
//   Thing thing(1);
//
//   thing.Do();
//
// What it is not.
#ifndef THING_H_
#define THING_H_

// Does things: "a//b" is text.
struct Thing {
  int bytes = 0;  // of all its groups
                  // together
  // 0 or more
  int count = 0;
  std::string url = "http://x";
};

#endif  // THING_H_
"""

DOCUMENTED = """\
/// \\file
/// What it is, of std\\::vector\\<int\\>.
///
/// \\code{.unparsed}
/// Thing thing(1);
///
/// thing.Do();
/// \\endcode
///
/// What it is not.
#ifndef THING_H_
#define THING_H_

/// Does things: "a//b" is text.
struct Thing {
  int bytes = 0;  ///< of all its groups
                  ///< together
  /// 0 or more
  int count = 0;
  std::string url = "http://x";
};

#endif  // THING_H_
"""


def test_comments_become_documentation_and_nothing_else_changes() -> None:
    assert runpy.run_path(str(TOOL))["documented"](HEADER) == DOCUMENTED
