"""Highway's headers as the distribution has them, under the name and version of the package on Conan's server."""

import re

from conan import ConanFile
from conan.tools.files import copy, load


class Highway(ConanFile):
    name = "highway"
    package_type = "header-library"

    def set_version(self):
        text = load(self, "/usr/include/hwy/highway.h") + load(self, "/usr/include/hwy/base.h")
        found = dict(re.findall(r"#define HWY_(MAJOR|MINOR|PATCH) (\d+)", text))
        self.version = ".".join(found[part] for part in ("MAJOR", "MINOR", "PATCH"))

    def package(self):
        copy(self, "hwy/*", "/usr/include", f"{self.package_folder}/include")

    def package_info(self):
        self.cpp_info.libdirs = self.cpp_info.bindirs = []
