# The shared cases, for the tools and the tests.
include_guard(GLOBAL)
add_library(groupnorm_cases STATIC EXCLUDE_FROM_ALL ${CMAKE_CURRENT_LIST_DIR}/cases.cpp)
target_include_directories(groupnorm_cases PUBLIC ${CMAKE_CURRENT_LIST_DIR})
target_link_libraries(groupnorm_cases PUBLIC groupnorm_internal)
