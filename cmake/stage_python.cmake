# SPDX-License-Identifier: Apache-2.0
# Lays a package out for running from the build tree: every Python file of SOURCE becomes a symbolic link in STAGE,
# beside the compiled modules, so that an edit needs no build. Links whose file is gone are removed.
#   cmake -DSOURCE=<dir> -DSTAGE=<dir> -P stage_python.cmake
file(GLOB_RECURSE sources RELATIVE ${SOURCE} ${SOURCE}/*.py ${SOURCE}/*.pyi ${SOURCE}/py.typed ${SOURCE}/*.json)
foreach(file IN LISTS sources)
  if(NOT EXISTS ${STAGE}/${file})
    cmake_path(GET file PARENT_PATH parent)
    file(MAKE_DIRECTORY ${STAGE}/${parent})
    file(CREATE_LINK ${SOURCE}/${file} ${STAGE}/${file} SYMBOLIC)
  endif()
endforeach()
file(GLOB_RECURSE staged RELATIVE ${STAGE} ${STAGE}/*.py ${STAGE}/*.pyi ${STAGE}/*.json)
foreach(file IN LISTS staged)
  if(IS_SYMLINK ${STAGE}/${file} AND NOT EXISTS ${SOURCE}/${file})
    file(REMOVE ${STAGE}/${file})
  endif()
endforeach()
