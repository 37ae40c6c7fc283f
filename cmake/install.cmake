# find_package(groupnorm), pkg-config groupnorm. Components of the installation: runtime, dev, tools.
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/groupnorm)

install(TARGETS groupnorm EXPORT groupnormTargets
  RUNTIME COMPONENT runtime
  LIBRARY COMPONENT runtime NAMELINK_COMPONENT dev
  ARCHIVE COMPONENT dev)
install(DIRECTORY include/groupnorm DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT dev)

# Of the build tree as well: for a parent that exports its own.
export(EXPORT groupnormTargets NAMESPACE groupnorm::)
install(EXPORT groupnormTargets NAMESPACE groupnorm:: DESTINATION ${package_dir} COMPONENT dev)

# A range of versions says itself which will do; else those of the minor version do.
foreach(compatibility AnyNewerVersion SameMinorVersion)
  write_basic_package_version_file(${compatibility}.cmake COMPATIBILITY ${compatibility})
  file(READ ${CMAKE_CURRENT_BINARY_DIR}/${compatibility}.cmake ${compatibility})
endforeach()
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/groupnormConfigVersion.cmake
  "if(PACKAGE_FIND_VERSION_RANGE)\n${AnyNewerVersion}\nelse()\n${SameMinorVersion}\nendif()\n")
install(FILES
  ${CMAKE_CURRENT_SOURCE_DIR}/cmake/groupnormConfig.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/groupnormConfigVersion.cmake
  DESTINATION ${package_dir} COMPONENT dev)

# The .pc file finds the prefix from where it lies, so that an installed tree can be moved.
set(pc_prefix ${CMAKE_INSTALL_PREFIX})
if(NOT IS_ABSOLUTE ${CMAKE_INSTALL_LIBDIR})
  cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX
    BASE_DIRECTORY ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig OUTPUT_VARIABLE pc_to_prefix)
  set(pc_prefix "\${pcfiledir}/${pc_to_prefix}")
endif()
cmake_path(APPEND pc_includedir "\${prefix}" ${CMAKE_INSTALL_INCLUDEDIR})
cmake_path(APPEND pc_libdir "\${prefix}" ${CMAKE_INSTALL_LIBDIR})
# Of a static library the caller links the C++ runtime too, whatever the language.
list(TRANSFORM cxx_runtime PREPEND -l OUTPUT_VARIABLE pc_runtime)
string(JOIN " " pc_runtime ${pc_runtime} ${CMAKE_THREAD_LIBS_INIT})
if(BUILD_SHARED_LIBS)
  set(pc_cflags "-DGROUPNORM_SHARED ")
  set(pc_libs_private ${pc_runtime})
else()
  set(pc_libs " ${pc_runtime}")
endif()
configure_file(cmake/groupnorm.pc.in groupnorm.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/groupnorm.pc
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT dev)
