#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# link_package.sh VENV STAGE: makes the package staged in the build tree importable in VENV, and VENV/bin/distorch.
# A VENV that is a link belongs to another checkout and is left alone.
set -euo pipefail
venv=$1 stage=$2
[ -L "$venv" ] && exit 0
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
if [ "$(cat "$site/distorch-dev.pth" 2> /dev/null)" != "$stage" ]; then
  echo "$stage" > "$site/distorch-dev.pth"
fi
# Each time: an older checkout may have left one that calls a module of another name.
printf '#!%s\nimport sys\n\nfrom distorch.tools.cli import main\n\nsys.exit(main())\n' "$(realpath -s "$venv")/bin/python" > "$venv/bin/distorch"
chmod +x "$venv/bin/distorch"
