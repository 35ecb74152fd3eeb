#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# lint.sh BIN: every check that reads sources only. BIN is the folder of the tools' executables.
set -uo pipefail
bin=$1
failed=0
check() {  # check NAME COMMAND...: says ok, or fails with the command's output
  local name=$1 output
  shift
  if output=$("$@" 2>&1); then echo "ok    $name"; else echo "FAIL  $name"; echo "$output" | head -n 60; failed=1; fi
}
sources() { git ls-files --cached --others --exclude-standard -- "$@" | while read -r f; do [ -e "$f" ] && echo "$f"; done; }
clang_format() { sources '*.h' '*.cc' '*.cu' | xargs -r "$bin/clang-format" --dry-run --Werror; }
shell_scripts() { sources '*.sh' .ci/run | xargs -r shellcheck -e SC2317; }

check "clang-format" clang_format
check "ruff format" "$bin/ruff" format --check --quiet .
check "ruff" "$bin/ruff" check --quiet .
check "mypy" "$bin/mypy"
check "layering" "$bin/python" tools/check_layering.py
check "layering check fails on a bad include" "$bin/python" tools/check_layering.py --self-test
check "names in the documentation" "$bin/python" tools/check_docs.py
check "workflows: schema" "$bin/check-jsonschema" --builtin-schema vendor.github-workflows .github/workflows/*.yml
check "workflows: zizmor" "$bin/zizmor" --offline --quiet .github
check "licence headers, whitespace" "$bin/python" tools/check_files.py
if command -v shellcheck > /dev/null; then check "shellcheck" shell_scripts; else echo "--    shellcheck is not installed: shell scripts were not checked"; fi
exit $failed
