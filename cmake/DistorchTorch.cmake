# SPDX-License-Identifier: Apache-2.0
# Finds the torch of the Python environment in use, without torch's own CMake package: that one insists on a CUDA
# toolkit of its own version, sets global flags and links libtorch_python, which the stable ABI forbids.
#
# DISTORCH_TORCH_DIR names the folder of another torch, for an interpreter that has none.
#
#   distorch::torch_stable    headers and libtorch_cpu for code on libtorch's stable ABI (architecture.md, decision 1)
#   distorch::torch_unstable  all of libtorch and libtorch_python; for the simulated accelerator only
include_guard(GLOBAL)

if(NOT DISTORCH_TORCH_DIR)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c
            "import importlib.util as u, pathlib; s = u.find_spec('torch'); print(pathlib.Path(s.origin).parent if s else '', end='')"
    OUTPUT_VARIABLE DISTORCH_TORCH_DIR)
endif()
if(NOT EXISTS "${DISTORCH_TORCH_DIR}/include/torch/csrc/stable/library.h")
  message(FATAL_ERROR
    "torch >= 2.10 was not found for ${Python_EXECUTABLE}. Install it there (pip install 'torch>=2.10'), "
    "or give -DPython_EXECUTABLE=<python of your ComfyUI environment>, "
    "or configure with -DDISTORCH_WITH_TORCH=OFF to build only what needs no torch.")
endif()
file(READ "${DISTORCH_TORCH_DIR}/version.py" _distorch_torch_version)
string(REGEX MATCH "__version__ = '([^']*)'" _ "${_distorch_torch_version}")
set(DISTORCH_TORCH_VERSION "${CMAKE_MATCH_1}")
message(STATUS "torch ${DISTORCH_TORCH_VERSION} in ${DISTORCH_TORCH_DIR}")

set(DISTORCH_TORCH_LIB "${DISTORCH_TORCH_DIR}/lib")
# An older NCCL of the system would otherwise be found first when libtorch_cuda.so's needs are resolved, and the link fails.
cmake_path(GET DISTORCH_TORCH_DIR PARENT_PATH _distorch_site_packages)
file(GLOB _distorch_nvidia_libs LIST_DIRECTORIES true "${_distorch_site_packages}/nvidia/*/lib")
set(_distorch_rpath_links "")
foreach(dir IN LISTS _distorch_nvidia_libs)
  list(APPEND _distorch_rpath_links "-Wl,-rpath-link,${dir}")
endforeach()

if(WIN32)
  set(_distorch_torch_prefix "")
  set(_distorch_torch_suffix .lib)
else()
  set(_distorch_torch_prefix lib)
  set(_distorch_torch_suffix ${CMAKE_SHARED_LIBRARY_SUFFIX})
endif()
set(_distorch_torch_link_options "")
if(NOT APPLE AND NOT WIN32)
  set(_distorch_torch_link_options -Wl,-rpath-link,${DISTORCH_TORCH_LIB} ${_distorch_rpath_links})
endif()
function(_distorch_torch_libraries variable)
  list(TRANSFORM ARGN PREPEND "${DISTORCH_TORCH_LIB}/${_distorch_torch_prefix}")
  list(TRANSFORM ARGN APPEND ${_distorch_torch_suffix})
  set(${variable} ${ARGN} PARENT_SCOPE)
endfunction()

add_library(distorch_torch_stable INTERFACE)
add_library(distorch::torch_stable ALIAS distorch_torch_stable)
target_include_directories(distorch_torch_stable SYSTEM INTERFACE ${DISTORCH_TORCH_DIR}/include)
# The stable ABI as it stood in torch 2.10: a binary built here then runs with every later torch.
target_compile_definitions(distorch_torch_stable INTERFACE TORCH_TARGET_VERSION=0x020a000000000000)
_distorch_torch_libraries(_distorch_libraries torch_cpu)
target_link_libraries(distorch_torch_stable INTERFACE ${_distorch_libraries})
target_link_options(distorch_torch_stable INTERFACE ${_distorch_torch_link_options})

add_library(distorch_torch_unstable INTERFACE)
add_library(distorch::torch_unstable ALIAS distorch_torch_unstable)
target_include_directories(distorch_torch_unstable SYSTEM INTERFACE
  ${DISTORCH_TORCH_DIR}/include ${DISTORCH_TORCH_DIR}/include/torch/csrc/api/include)
_distorch_torch_libraries(_distorch_libraries torch_python torch_cpu c10)
target_link_libraries(distorch_torch_unstable INTERFACE ${_distorch_libraries})
target_link_options(distorch_torch_unstable INTERFACE ${_distorch_torch_link_options})
