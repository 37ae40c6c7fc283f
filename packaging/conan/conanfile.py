"""Conan 2 recipe of this checkout: conan create packaging/conan"""

import os

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeToolchain, cmake_layout
from conan.tools.files import copy, load, rmdir

_SOURCES = ("CMakeLists.txt", "LICENSE", "cmake/*", "include/*", "src/*")


class Groupnorm(ConanFile):
    name = "groupnorm"
    description = "Group normalization and its family on CPUs and edge devices"
    license = "Apache-2.0"
    topics = ("normalization", "deep-learning", "simd", "cpu")
    package_type = "library"
    settings = "os", "arch", "compiler", "build_type"
    options = {"shared": [True, False], "fPIC": [True, False]}
    default_options = {"shared": False, "fPIC": True}
    implements = ["auto_shared_fpic"]

    def set_version(self):
        header = load(self, os.path.join(self._checkout(), "include/groupnorm/version.h"))
        self.version = header.partition('GROUPNORM_VERSION "')[2].partition('"')[0]

    def _checkout(self):
        return os.path.join(self.recipe_folder, "..", "..")

    def export_sources(self):
        for pattern in _SOURCES:
            copy(self, pattern, self._checkout(), self.export_sources_folder)

    def layout(self):
        cmake_layout(self)

    def requirements(self):
        # Its headers are compiled in; nothing of it is linked.
        self.requires("highway/[>=1.0.3 <2]", visible=False, libs=False, run=False)

    def validate(self):
        check_min_cppstd(self, 20)

    def generate(self):
        toolchain = CMakeToolchain(self)
        highway = self.dependencies["highway"].cpp_info
        toolchain.cache_variables["GROUPNORM_HIGHWAY_INCLUDE"] = highway.includedirs[0]
        for part in ("BUILD_TOOLS", "BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_BENCH"):
            toolchain.cache_variables[f"GROUPNORM_{part}"] = False
        toolchain.generate()

    def build(self):
        cmake = CMake(self)
        cmake.configure()
        cmake.build()

    def package(self):
        CMake(self).install()
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))
        for folder in ("cmake", "pkgconfig"):  # Conan generates its own
            rmdir(self, os.path.join(self.package_folder, "lib", folder))

    def package_info(self):
        self.cpp_info.set_property("cmake_file_name", "groupnorm")
        self.cpp_info.set_property("cmake_target_name", "groupnorm::groupnorm")
        self.cpp_info.set_property("pkg_config_name", "groupnorm")
        self.cpp_info.libs = ["groupnorm"]
        if self.options.shared:
            self.cpp_info.defines = ["GROUPNORM_SHARED"]
        if self.settings.os in ("Linux", "FreeBSD"):
            self.cpp_info.system_libs = ["m", "pthread"]
