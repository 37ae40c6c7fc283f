# groupnorm_highway: the headers of Highway, the distribution's or a pinned release. Nothing of Highway
# is compiled or linked, so the built library does not depend on it. Which instruction sets it compiles:
# src/kernels/targets.h.
find_path(GROUPNORM_HIGHWAY_INCLUDE hwy/highway.h DOC "The directory that holds hwy/highway.h")
mark_as_advanced(GROUPNORM_HIGHWAY_INCLUDE)
set(highway_include ${GROUPNORM_HIGHWAY_INCLUDE})
if(NOT highway_include)
  include(FetchContent)
  FetchContent_Declare(highway
    GIT_REPOSITORY https://github.com/google/highway
    GIT_TAG 1.0.3  # as in Debian 12: the oldest that the tests run with
    GIT_SHALLOW ON
    SOURCE_SUBDIR headers-only)  # no such directory: its own build is left out
  FetchContent_MakeAvailable(highway)
  set(highway_include ${highway_SOURCE_DIR})
endif()

# Later versions have moved it from highway.h to base.h.
set(highway_version)
foreach(header base.h highway.h)
  file(STRINGS ${highway_include}/hwy/${header} lines REGEX "^#define HWY_(MAJOR|MINOR|PATCH) [0-9]+")
  string(REGEX REPLACE "[^0-9;]" "" lines "${lines}")
  list(APPEND highway_version ${lines})
endforeach()
list(JOIN highway_version . highway_version)
message(STATUS "Highway ${highway_version}: ${highway_include}")
if(highway_version VERSION_LESS 1.0.3)
  message(FATAL_ERROR "groupnorm needs Highway 1.0.3 or later; ${highway_include} has "
    "${highway_version}. GROUPNORM_HIGHWAY_INCLUDE names the directory of another.")
endif()

add_library(groupnorm_highway INTERFACE)
target_include_directories(groupnorm_highway SYSTEM INTERFACE ${highway_include})
# Highway's debug assertions call into its library; ours are the tests.
target_compile_definitions(groupnorm_highway INTERFACE HWY_IS_DEBUG_BUILD=0)
