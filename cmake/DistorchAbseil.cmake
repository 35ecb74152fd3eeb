# SPDX-License-Identifier: Apache-2.0
# Finds Abseil: the system's, or what DISTORCH_ABSL_SOURCE names: its sources, or a folder where it is installed.
include_guard(GLOBAL)

if(NOT DISTORCH_ABSL_SOURCE)
  find_package(absl REQUIRED)
elseif(EXISTS "${DISTORCH_ABSL_SOURCE}/CMakeLists.txt")
  set(ABSL_PROPAGATE_CXX_STD ON)
  set(BUILD_SHARED_LIBS OFF)
  add_subdirectory("${DISTORCH_ABSL_SOURCE}" "${PROJECT_BINARY_DIR}/absl" EXCLUDE_FROM_ALL)
else()
  file(GLOB_RECURSE _distorch_absl_config "${DISTORCH_ABSL_SOURCE}/abslConfig.cmake")
  if(NOT _distorch_absl_config)
    message(FATAL_ERROR "DISTORCH_ABSL_SOURCE=${DISTORCH_ABSL_SOURCE} has neither Abseil's CMakeLists.txt nor its abslConfig.cmake")
  endif()
  list(GET _distorch_absl_config 0 _distorch_absl_config)
  cmake_path(GET _distorch_absl_config PARENT_PATH _distorch_absl_dir)
  find_package(absl REQUIRED CONFIG PATHS "${_distorch_absl_dir}" NO_DEFAULT_PATH)
endif()
