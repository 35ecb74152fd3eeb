#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# abseil.sh BUILD TARGET [CMAKE-ARGUMENT...]: installs Abseil's headers and static libraries with its CMake files in TARGET, from
# its sources: those in DISTORCH_ABSL_SOURCE, or the distribution's source package, fetched into BUILD. The static libraries of Debian's
# package will not do: some are not position independent, and its CMake files name the shared ones.
set -euo pipefail
build=$1 target=$2
shift 2
source=${DISTORCH_ABSL_SOURCE:-$build/source}
mkdir -p "$build"

if [ ! -e "$source/CMakeLists.txt" ]; then
  [ -z "${DISTORCH_ABSL_SOURCE:-}" ] || { echo "DISTORCH_ABSL_SOURCE=$source has no CMakeLists.txt" >&2; exit 1; }
  # The distribution's own package lists, as sources, beside the system's: nothing of the system is changed.
  lists=$(mktemp -d)
  trap 'rm -rf "$lists"' EXIT
  mkdir -p "$lists/parts" "$lists/state/partial" "$lists/cache"
  for file in $(grep -rliE 'debian|ubuntu' /etc/apt/sources.list /etc/apt/sources.list.d 2> /dev/null || true); do
    sed -e 's/^Types: .*/Types: deb-src/' -e '/^deb-src/d' -e 's/^deb /deb-src /' "$file" > "$lists/parts/$(basename "$file")"
  done
  apt() {
    apt-get -qq -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$lists/parts" -o Dir::State::Lists="$lists/state" \
      -o Dir::Cache="$lists/cache" -o APT::Sandbox::User="$(id -un)" "$@"
  }
  apt update
  (cd "$lists" && apt source --download-only abseil)
  mkdir -p "$source"
  tar -xf "$lists"/abseil_*.orig.tar.* -C "$source" --strip-components 1
fi
cmake -S "$source" -B "$build/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_POSITION_INDEPENDENT_CODE=ON \
  -DCMAKE_CXX_STANDARD=20 -DABSL_PROPAGATE_CXX_STD=ON -DBUILD_TESTING=OFF -DCMAKE_INSTALL_PREFIX="$target" -DCMAKE_INSTALL_LIBDIR=lib \
  -DCMAKE_POLICY_VERSION_MINIMUM=3.5 ${CCACHE:+-DCMAKE_CXX_COMPILER_LAUNCHER=$CCACHE} "$@"
cmake --build "$build/build"
cmake --install "$build/build"
