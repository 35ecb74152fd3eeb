# SPDX-License-Identifier: Apache-2.0
# `cmake --install`: what a C++ program needs.
#
#   find_package(distorch 0.1 REQUIRED)
#   target_link_libraries(program PRIVATE distorch::core)           # all that needs no torch
#   target_link_libraries(program PRIVATE distorch::torch_module)   # and <distorch/torch_module.h>, beside your own libtorch
include_guard(GLOBAL)
include(CMakePackageConfigHelpers)

get_property(installed GLOBAL PROPERTY DISTORCH_INSTALLED)
add_library(distorch_core INTERFACE)
target_link_libraries(distorch_core INTERFACE ${installed})
add_library(distorch_torch_module INTERFACE)
target_link_libraries(distorch_torch_module INTERFACE distorch_core)
set_target_properties(distorch_core PROPERTIES EXPORT_NAME core)
set_target_properties(distorch_torch_module PROPERTIES EXPORT_NAME torch_module)
install(TARGETS distorch_core distorch_torch_module EXPORT distorch)
install(FILES distorch/distorch.h distorch/torch_module.h distorch/torch_module_table.h distorch/torch_streamer.h
        DESTINATION ${DISTORCH_INSTALL_INCLUDE}/distorch)
install(EXPORT distorch NAMESPACE distorch:: FILE distorchTargets.cmake DESTINATION lib/cmake/distorch)
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/distorchConfig.cmake.in ${PROJECT_BINARY_DIR}/distorchConfig.cmake
                              INSTALL_DESTINATION lib/cmake/distorch)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/distorchConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/distorchConfig.cmake ${PROJECT_BINARY_DIR}/distorchConfigVersion.cmake
        DESTINATION lib/cmake/distorch)
