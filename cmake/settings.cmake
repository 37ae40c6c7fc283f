# groupnorm_settings: how everything in this project is compiled, and nothing outside it.
add_library(groupnorm_settings INTERFACE)
target_compile_features(groupnorm_settings INTERFACE cxx_std_20 c_std_11)
target_compile_options(groupnorm_settings INTERFACE
  $<$<CXX_COMPILER_ID:GNU,Clang,AppleClang>:-Wall;-Wextra;-Wpedantic;-Wconversion>
  $<$<CXX_COMPILER_ID:GNU,Clang,AppleClang>:$<IF:$<BOOL:${GROUPNORM_WERROR}>,-Werror,-Wno-error>>)

# What the flags of a parent project, or of the user, must not take from us. These options stand behind
# theirs, and the last one counts; src/dtype.h refuses what is left.
#
# IEEE 754. A product that is fused into a sum in one place and not in another would make bits depend on
# threads: where fusing pays, the kernels say so. Of GCC's options each is its own, but clang's
# -fno-fast-math is about all (and its -fno-unsafe-math-optimizations asks for floating-point traps).
set(ieee_gnu
  -fno-fast-math -fno-finite-math-only -fno-unsafe-math-optimizations -fno-associative-math
  -fno-reciprocal-math -fsigned-zeros)
target_compile_options(groupnorm_settings INTERFACE
  $<$<CXX_COMPILER_ID:GNU>:${ieee_gnu}>
  $<$<CXX_COMPILER_ID:Clang,AppleClang>:-fno-fast-math>
  $<$<CXX_COMPILER_ID:GNU,Clang,AppleClang>:-ffp-contract=off>
  $<$<CXX_COMPILER_ID:IntelLLVM>:-fp-model=precise>
  $<$<CXX_COMPILER_ID:MSVC>:/fp:precise>)

# Linked with -ffast-math or -Ofast, a program or a library makes the processor flush denormals.
set(ieee_link_options -O2 -fno-fast-math -fno-unsafe-math-optimizations)
set(ieee_link_options $<$<CXX_COMPILER_ID:GNU,Clang,AppleClang>:${ieee_link_options}>)
target_link_options(groupnorm_settings INTERFACE ${ieee_link_options})

# Errors are exceptions, and the layers have types that callers may ask for.
if(NOT GROUPNORM_EDGE)
  target_compile_options(groupnorm_settings INTERFACE
    $<$<COMPILE_LANG_AND_ID:CXX,GNU,Clang,AppleClang>:-fexceptions;-frtti>)
endif()

# Without a build type the kernels would be too slow to be of use. (GCC's -Ofast also lets stores race.)
if(NOT CMAKE_CONFIGURATION_TYPES AND NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CXX_FLAGS MATCHES "-O[0-3gsz]")
  target_compile_options(groupnorm_settings INTERFACE $<IF:$<CXX_COMPILER_ID:MSVC>,/O2,-O2>)
endif()

# What a C program links, by the C compiler, beside a static library of ours; the edge build has no C++
# runtime.
set(cxx_runtime ${CMAKE_CXX_IMPLICIT_LINK_LIBRARIES})
list(FILTER cxx_runtime INCLUDE REGEX "^(stdc\\+\\+|c\\+\\+|m)$")
if(GROUPNORM_EDGE)
  list(FILTER cxx_runtime EXCLUDE REGEX "\\+\\+")
endif()
list(REMOVE_DUPLICATES cxx_runtime)
