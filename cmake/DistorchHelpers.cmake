# SPDX-License-Identifier: Apache-2.0
# One helper for each kind of target, so that a new library is a few lines and every target gets the same warnings.
#
#   distorch_cc_library(NAME parser HDRS parser.h SRCS parser.cc DEPS distorch::bytes absl::statusor)
#     makes the static library distorch_parser with the alias distorch::parser, and installs it with its headers, unless
#     INTERNAL is given: for what only our own binaries can link.
#   distorch_cc_test(NAME parser_test SRCS parser_test.cc DEPS distorch::parser [LABELS gpu])
#     makes a GoogleTest binary and registers each of its tests with CTest (label `unit` unless given;
#     the thread sanitizer's preset takes those with the label `threads`).
#   distorch_cc_benchmark(NAME parser_benchmark SRCS parser_benchmark.cc DEPS distorch::parser)
#     makes a Google Benchmark binary in <build>/bench/, run by `make bench`.
#   distorch_cc_fuzzer(NAME parser_fuzzer SRCS parser_fuzzer.cc DEPS distorch::parser)
#     makes a libFuzzer binary in <build>/fuzz/ (only with DISTORCH_BUILD_FUZZERS), and the test parser_fuzzer_seeds, which
#     runs the same function over the files of tests/corpus/parser_fuzzer.
include_guard(GLOBAL)

if(MSVC)
  set(DISTORCH_WARNINGS /W3 $<$<BOOL:${DISTORCH_WERROR}>:/WX>)
else()
  set(DISTORCH_WARNINGS
    -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Wnon-virtual-dtor -Wold-style-cast
    -Woverloaded-virtual -Wdouble-promotion -Wformat=2 -Wimplicit-fallthrough
    "$<$<CXX_COMPILER_ID:Clang>:-Werror=thread-safety;-Werror=thread-safety-beta>"  # the latter: the order of locks
    $<$<BOOL:${DISTORCH_WERROR}>:-Werror>)
endif()

function(distorch_configure_target target scope)
  target_include_directories(${target} ${scope} $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
                             $<INSTALL_INTERFACE:${DISTORCH_INSTALL_INCLUDE}>)
  if(NOT scope STREQUAL "INTERFACE")
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:${DISTORCH_WARNINGS}>)
    if(DISTORCH_SANITIZE)
      target_compile_options(${target} PRIVATE -fsanitize=${DISTORCH_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
      target_link_options(${target} PUBLIC -fsanitize=${DISTORCH_SANITIZE})
    endif()
    if(DISTORCH_COVERAGE)
      target_compile_options(${target} PRIVATE --coverage -O0 -fprofile-update=atomic)
      target_link_options(${target} PUBLIC --coverage)
    endif()
  endif()
endfunction()

function(distorch_cc_library)
  cmake_parse_arguments(ARG "INTERNAL" "NAME" "HDRS;SRCS;DEPS;DEFINES" ${ARGN})
  if(ARG_SRCS)
    add_library(distorch_${ARG_NAME} STATIC ${ARG_SRCS} ${ARG_HDRS})
    distorch_configure_target(distorch_${ARG_NAME} PUBLIC)
    target_link_libraries(distorch_${ARG_NAME} PUBLIC ${ARG_DEPS})
    target_compile_definitions(distorch_${ARG_NAME} PUBLIC ${ARG_DEFINES})
  else()
    add_library(distorch_${ARG_NAME} INTERFACE)
    distorch_configure_target(distorch_${ARG_NAME} INTERFACE)
    target_link_libraries(distorch_${ARG_NAME} INTERFACE ${ARG_DEPS})
    target_compile_definitions(distorch_${ARG_NAME} INTERFACE ${ARG_DEFINES})
  endif()
  add_library(distorch::${ARG_NAME} ALIAS distorch_${ARG_NAME})
  if(DISTORCH_INSTALL AND NOT ARG_INTERNAL)
    file(RELATIVE_PATH folder ${PROJECT_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR})
    set_target_properties(distorch_${ARG_NAME} PROPERTIES EXPORT_NAME ${ARG_NAME})
    install(TARGETS distorch_${ARG_NAME} EXPORT distorch ARCHIVE DESTINATION lib)
    install(FILES ${ARG_HDRS} DESTINATION ${DISTORCH_INSTALL_INCLUDE}/${folder})
    set_property(GLOBAL APPEND PROPERTY DISTORCH_INSTALLED distorch_${ARG_NAME})
  endif()
endfunction()

function(distorch_cc_test)
  cmake_parse_arguments(ARG "" "NAME" "SRCS;DEPS;LABELS" ${ARGN})
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  if(NOT DISTORCH_BUILD_TESTS OR (DISTORCH_SANITIZE STREQUAL "thread" AND NOT ARG_LABELS STREQUAL "threads"))
    return()
  endif()
  add_executable(${ARG_NAME} ${ARG_SRCS})
  distorch_configure_target(${ARG_NAME} PRIVATE)
  if(NOT MSVC)
    target_compile_options(${ARG_NAME} PRIVATE -O1 -g1)  # compiling them costs more than running them
  endif()
  target_link_libraries(${ARG_NAME} PRIVATE ${ARG_DEPS} GTest::gmock GTest::gtest_main)
  if(CMAKE_CROSSCOMPILING)  # starting the emulator costs more than most tests
    add_test(NAME ${ARG_NAME} COMMAND ${ARG_NAME})
    set_tests_properties(${ARG_NAME} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT 300)
  else()
    gtest_discover_tests(${ARG_NAME} DISCOVERY_TIMEOUT 60 PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT 300)
  endif()
endfunction()

function(distorch_cc_benchmark)
  cmake_parse_arguments(ARG "" "NAME" "SRCS;DEPS" ${ARGN})
  if(NOT DISTORCH_BUILD_BENCHMARKS)
    return()
  endif()
  add_executable(${ARG_NAME} ${ARG_SRCS})
  distorch_configure_target(${ARG_NAME} PRIVATE)
  target_link_libraries(${ARG_NAME} PRIVATE ${ARG_DEPS} benchmark::benchmark_main)
  set_target_properties(${ARG_NAME} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bench)
endfunction()

function(distorch_cc_fuzzer)
  cmake_parse_arguments(ARG "" "NAME" "SRCS;DEPS" ${ARGN})
  if(DISTORCH_BUILD_TESTS AND NOT DISTORCH_SANITIZE STREQUAL "thread")
    add_executable(${ARG_NAME}_seeds ${ARG_SRCS} ${PROJECT_SOURCE_DIR}/tests/support/fuzz/replay.cc)
    distorch_configure_target(${ARG_NAME}_seeds PRIVATE)
    target_link_libraries(${ARG_NAME}_seeds PRIVATE ${ARG_DEPS})
    add_test(NAME ${ARG_NAME}_seeds COMMAND ${ARG_NAME}_seeds ${PROJECT_SOURCE_DIR}/tests/corpus/${ARG_NAME})
    set_tests_properties(${ARG_NAME}_seeds PROPERTIES LABELS unit TIMEOUT 60)
  endif()
  if(NOT DISTORCH_BUILD_FUZZERS)
    return()
  endif()
  add_executable(${ARG_NAME} ${ARG_SRCS})
  distorch_configure_target(${ARG_NAME} PRIVATE)
  target_compile_options(${ARG_NAME} PRIVATE -fsanitize=fuzzer)
  target_link_options(${ARG_NAME} PRIVATE -fsanitize=fuzzer)
  target_link_libraries(${ARG_NAME} PRIVATE ${ARG_DEPS})
  set_target_properties(${ARG_NAME} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/fuzz)
endfunction()
