# cpack: Debian packages of the components, as Debian cuts a library: libgroupnorm0.1 (runtime),
# libgroupnorm-dev (dev) and groupnorm (tools, which needs neither). Preset `package`.
#
# Their CMake and pkg-config files find the prefix from where they lie, so that `dpkg-deb -x FILE DIR`
# gives a tree that works in DIR, without root.
set(abi ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
set(packages.runtime libgroupnorm${abi})
set(packages.dev libgroupnorm-dev)
set(packages.tools groupnorm)
set(descriptions.runtime "Shared library")
set(descriptions.dev "Headers, CMake package and pkg-config file")
set(descriptions.tools "Command line")

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_CONTACT "groupnorm maintainers <maintainers@groupnorm.invalid>")
set(CPACK_PACKAGING_INSTALL_PREFIX ${CMAKE_INSTALL_PREFIX})
set(CPACK_STRIP_FILES ON)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS ON)
set(CPACK_DEBIAN_RUNTIME_PACKAGE_SECTION libs)
set(CPACK_DEBIAN_DEV_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_DEV_PACKAGE_DEPENDS "${packages.runtime} (= ${PROJECT_VERSION})")
set(CPACK_DEBIAN_TOOLS_PACKAGE_SECTION science)

foreach(component runtime dev tools)
  string(TOUPPER ${component} upper)
  set(CPACK_DEBIAN_${upper}_PACKAGE_NAME ${packages.${component}})
  set(CPACK_COMPONENT_${upper}_DESCRIPTION "${PROJECT_DESCRIPTION}
 ${descriptions.${component}} of groupnorm.")
  install(FILES LICENSE RENAME copyright COMPONENT ${component}
    DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/${packages.${component}})
endforeach()
set(CPACK_COMPONENTS_ALL runtime dev tools)
include(CPack)
