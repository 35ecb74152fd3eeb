# SPDX-License-Identifier: Apache-2.0
# Writes <build>/distorch.cdx.json: what is linked or compiled into the binaries, as CycloneDX (PEP 770 puts it into the wheel).
include_guard(GLOBAL)
set(DISTORCH_SBOM_RUNTIME "")
set(DISTORCH_SBOM_RUNTIME_REF "")
if(MINGW)  # linked in, under GCC's runtime library exception and mingw-w64's own licences
  set(DISTORCH_SBOM_RUNTIME ",
    {
      \"type\": \"library\",
      \"bom-ref\": \"gcc\",
      \"name\": \"gcc-runtime\",
      \"version\": \"${CMAKE_CXX_COMPILER_VERSION}\",
      \"description\": \"libstdc++, libgcc and mingw-w64's winpthreads, linked in\",
      \"licenses\": [{\"expression\": \"GPL-3.0-or-later WITH GCC-exception-3.1 AND MIT AND BSD-3-Clause\"}]
    }")
  set(DISTORCH_SBOM_RUNTIME_REF ", \"gcc\"")
endif()
configure_file(${CMAKE_CURRENT_LIST_DIR}/sbom.cdx.json.in ${PROJECT_BINARY_DIR}/distorch.cdx.json @ONLY)
if(DEFINED SKBUILD_METADATA_DIR)
  install(FILES ${PROJECT_BINARY_DIR}/distorch.cdx.json DESTINATION ${SKBUILD_METADATA_DIR}/sboms)
endif()
