# groupnorm_highway: the headers of Highway, the distribution's or a pinned release. Nothing of Highway
# is compiled or linked, so the built library does not depend on it.
find_path(GROUPNORM_HIGHWAY_INCLUDE hwy/highway.h DOC "The directory that holds hwy/highway.h")
mark_as_advanced(GROUPNORM_HIGHWAY_INCLUDE)
set(highway_include ${GROUPNORM_HIGHWAY_INCLUDE})
if(NOT highway_include)
  include(FetchContent)
  FetchContent_Declare(highway
    GIT_REPOSITORY https://github.com/google/highway
    GIT_TAG 1.0.3  # as in Debian 12: the one the tests run with
    GIT_SHALLOW ON
    SOURCE_SUBDIR headers-only)  # no such directory: its own build is left out
  FetchContent_MakeAvailable(highway)
  set(highway_include ${highway_SOURCE_DIR})
endif()

add_library(groupnorm_highway INTERFACE)
target_include_directories(groupnorm_highway SYSTEM INTERFACE ${highway_include})
# Highway's debug assertions call into its library; ours are the tests.
target_compile_definitions(groupnorm_highway INTERFACE HWY_IS_DEBUG_BUILD=0)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^arm" AND CMAKE_SIZEOF_VOID_P EQUAL 4)
  # 32-bit NEON has no vectors of double: portable code.
  target_compile_definitions(groupnorm_highway INTERFACE HWY_COMPILE_ONLY_EMU128)
endif()
