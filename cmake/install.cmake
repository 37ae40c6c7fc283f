# find_package(groupnorm), pkg-config groupnorm. Components: runtime, dev, tools.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/groupnorm)

install(TARGETS groupnorm EXPORT groupnormTargets
  RUNTIME COMPONENT runtime
  LIBRARY COMPONENT runtime NAMELINK_COMPONENT dev
  ARCHIVE COMPONENT dev)
install(DIRECTORY include/groupnorm DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT dev)

install(EXPORT groupnormTargets NAMESPACE groupnorm:: DESTINATION ${package_dir} COMPONENT dev)
write_basic_package_version_file(groupnormConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES
  ${CMAKE_CURRENT_SOURCE_DIR}/cmake/groupnormConfig.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/groupnormConfigVersion.cmake
  DESTINATION ${package_dir} COMPONENT dev)

# The .pc file finds the prefix from where it lies, so that an installed tree can be moved.
cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX
  BASE_DIRECTORY ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig OUTPUT_VARIABLE pc_to_prefix)
set(pc_runtime ${CMAKE_CXX_IMPLICIT_LINK_LIBRARIES})
list(FILTER pc_runtime INCLUDE REGEX "^(stdc\\+\\+|c\\+\\+|m)$")
list(REMOVE_DUPLICATES pc_runtime)
list(TRANSFORM pc_runtime PREPEND -l)
string(JOIN " " pc_libs_private ${pc_runtime} ${CMAKE_THREAD_LIBS_INIT})
configure_file(cmake/groupnorm.pc.in groupnorm.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/groupnorm.pc
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT dev)
