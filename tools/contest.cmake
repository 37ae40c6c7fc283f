# What times calls against copies of the same bytes, for `groupnorm bench` and the benchmark.
include_guard(GLOBAL)
add_library(groupnorm_contest STATIC EXCLUDE_FROM_ALL
  ${CMAKE_CURRENT_LIST_DIR}/contest.cpp
  ${CMAKE_CURRENT_LIST_DIR}/copy.cpp
  ${CMAKE_CURRENT_LIST_DIR}/subject.cpp
  ${CMAKE_CURRENT_LIST_DIR}/verify.cpp)
target_include_directories(groupnorm_contest PUBLIC ${CMAKE_CURRENT_LIST_DIR})
target_link_libraries(groupnorm_contest PUBLIC groupnorm_internal)
