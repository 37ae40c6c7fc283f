"""The jar: its JUnit tests, its examples, the bits of the NumPy call, and how it finds the library.

`java/build` makes the jar first. From Debian come openjdk-17-jdk-headless, libjna-java, junit5, scala
and clojure.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy
import pytest

import groupnorm

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "python"))

import norms

BUILD = ROOT / "build" / "java"
CLASSES = BUILD / "classes"
TEST_CLASSES = BUILD / "test-classes"
LIBRARY = BUILD / "native-build" / "libgroupnorm.so"
EXAMPLES = ROOT / "java" / "examples"
SYSTEM = pathlib.Path("/usr/share/java")
JNA = SYSTEM / "jna.jar"
JUNIT = [
    SYSTEM / f"{name}.jar"
    for name in (
        "apiguardian-api",
        "junit-jupiter-api",
        "junit-jupiter-engine",
        "junit-platform-commons",
        "junit-platform-console",
        "junit-platform-engine",
        "junit-platform-launcher",
        "junit-platform-reporting",
        "opentest4j",
        "opentest4j-reporting-events",
        "picocli",
    )
]


def run(*command: Any, ends_with: int = 0, env: dict[str, str] | None = None) -> str:
    """What it prints; it must end with that status."""
    words = [str(each) for each in command]
    env = None if env is None else {**os.environ, **env}
    done = subprocess.run(
        words, check=False, cwd=ROOT, capture_output=True, text=True, timeout=900, env=env
    )
    output = done.stdout + done.stderr
    assert done.returncode == ends_with, f"{words}: ended with {done.returncode}\n{output}"
    return output


def path(*parts: pathlib.Path) -> str:
    return ":".join(str(part) for part in parts)


@pytest.fixture(scope="session")
def jar(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Made by `java/build`, which fails also for warnings of javac and javadoc."""
    of_another_machine = tmp_path_factory.mktemp("other") / "libgroupnorm.so.0.1.0"
    of_another_machine.write_text("a library\n")
    run("java/build", f"linux-other={of_another_machine}")
    return BUILD / f"groupnorm-{groupnorm.__version__}.jar"


@pytest.fixture(scope="session")
def compiled(jar: pathlib.Path) -> Sequence[pathlib.Path]:
    """A class path with the jar and all Java programs that use it."""
    shutil.rmtree(TEST_CLASSES, ignore_errors=True)
    folders = (ROOT / "tests" / "java", EXAMPLES, ROOT / "java" / "bench")
    sources = [each for folder in folders for each in folder.glob("*.java")]
    options = ("--release", "11", "-Xlint:all,-path", "-Werror", "-d", TEST_CLASSES)
    run("javac", *options, "-cp", path(jar, JNA, *JUNIT), *sources)
    return TEST_CLASSES, jar, JNA


def test_junit(compiled: Sequence[pathlib.Path]) -> None:
    console = "org.junit.platform.console.ConsoleLauncher"
    options = ("--scan-classpath", TEST_CLASSES, "--fail-if-no-tests", "--disable-ansi-colors")
    run("java", "-Xmx1g", "-cp", path(*compiled, *JUNIT), console, *options)


def test_java_example(compiled: Sequence[pathlib.Path]) -> None:
    assert "ok" in run("java", "-cp", path(*compiled), "GroupNormPerExample")


def test_scala_example(jar: pathlib.Path) -> None:
    out = BUILD / "scala-classes"
    out.mkdir(exist_ok=True)
    source = EXAMPLES / "BatchGroupNormUnbiased.scala"
    run("scalac", "-Xfatal-warnings", "-cp", path(jar, JNA), "-d", out, source)
    library = SYSTEM / "scala-library.jar"
    assert "ok" in run("java", "-cp", path(out, jar, JNA, library), "BatchGroupNormUnbiased")


def test_clojure_example(jar: pathlib.Path) -> None:
    classpath = path(jar, JNA, SYSTEM / "clojure.jar")
    assert "ok" in run("java", "-cp", classpath, "clojure.main", EXAMPLES / "batch_group_norm.clj")


def test_benchmark_runs(compiled: Sequence[pathlib.Path]) -> None:
    assert '"16x32x64x64"' in run("java", "-cp", path(*compiled), "Bench", "--quick")


# Shapes of both walks, whole and split, and the dtypes of NumPy.
CASES = [
    (dtype, layout, activation, correction, groups, shape)
    for dtype in norms.dtypes()
    for layout in norms.LAYOUTS
    for activation, correction in (("none", 1), ("silu", 0), ("gelu", 0))
    for groups, shape in ((4, (2, 8, 33)), (8, (2, 32, 4096)), (1, (5, 64, 1)))
]
JAVA_NAMES = {"float32": "F32", "float64": "F64", "float16": "F16", "bfloat16": "BF16"}


def test_bits_are_those_of_numpy(compiled: Sequence[pathlib.Path], tmp_path: pathlib.Path) -> None:
    lines = []
    for i, (dtype, layout, activation, correction, groups, (n, c, s)) in enumerate(CASES):
        shape = (n, c, s) if layout == "channels_first" else (n, s, c)
        norms.normal(shape, dtype, seed=i, mean=3).tofile(tmp_path / f"{i}.x")
        norms.normal(shape, dtype, seed=i + 1000).tofile(tmp_path / f"{i}.dy")
        for name, mean in (("gamma", 1), ("beta", 0)):
            values = norms.normal(c, norms.param_dtype(dtype), seed=i, mean=mean)
            values.astype("float64").tofile(tmp_path / f"{i}.{name}")
        words = (i, groups, JAVA_NAMES[dtype.name], layout.upper(), activation.upper(), correction)
        lines.append(" ".join(str(word) for word in (*words, n, c, s)))
    (tmp_path / "cases").write_text("\n".join(lines) + "\n")
    run("java", "-cp", path(*compiled), "Bits", tmp_path)

    for i, (dtype, layout, activation, correction, groups, (n, c, s)) in enumerate(CASES):
        shape = (n, c, s) if layout == "channels_first" else (n, s, c)

        def read(name: str, of: Any = "float64", number: int = i) -> numpy.ndarray:
            return numpy.fromfile(tmp_path / f"{number}.{name}", dtype=of)

        x, dy = read("x", dtype).reshape(shape), read("dy", dtype).reshape(shape)
        gamma, beta = (read(name).astype(norms.param_dtype(dtype)) for name in ("gamma", "beta"))
        options: dict[str, Any] = {
            "activation": activation,
            "layout": layout,
            "correction": correction,
        }
        y, mean, rstd = groupnorm.group_norm(
            x, groups, gamma, beta, return_statistics=True, **options
        )
        dx, dgamma, dbeta = groupnorm.group_norm_backward(
            dy, x, groups, gamma, mean, rstd, bias=beta, **options
        )
        for name, ours in (("y", y), ("dx", dx)):
            assert read(name, dtype).tobytes() == ours.tobytes(), f"{lines[i]}: {name}"
        for name, ours in (("mean", mean), ("rstd", rstd), ("dgamma", dgamma), ("dbeta", dbeta)):
            bits = numpy.asarray(ours, "float64").tobytes()
            assert read(name).tobytes() == bits, f"{lines[i]}: {name}"


# --- How the library is found


WITHOUT_LIBRARY = (TEST_CLASSES, CLASSES, JNA)  # the classes of the jar alone


def test_the_jar_brings_the_library(compiled: Sequence[pathlib.Path]) -> None:
    assert run("java", "-cp", path(*compiled), "Once") == "-0.999995 0.999995\n"


@pytest.mark.parametrize("name", ["jna.library.path", "java.library.path", "groupnorm.library"])
def test_the_library_is_found_by_a_property(
    compiled: Sequence[pathlib.Path], tmp_path: pathlib.Path, name: str
) -> None:
    library = shutil.copy(LIBRARY, tmp_path)
    value = library if name == "groupnorm.library" else f"/nowhere:{tmp_path}"
    output = run("java", f"-D{name}={value}", "-cp", path(*WITHOUT_LIBRARY), "Once")
    assert output == "-0.999995 0.999995\n"


def test_the_library_is_found_where_the_system_looks(
    compiled: Sequence[pathlib.Path], tmp_path: pathlib.Path
) -> None:
    shutil.copy(LIBRARY, tmp_path)
    env = {"LD_LIBRARY_PATH": str(tmp_path)}
    assert "0.999995" in run("java", "-cp", path(*WITHOUT_LIBRARY), "Once", env=env)


def test_a_missing_library_says_where_it_was_looked_for(
    compiled: Sequence[pathlib.Path],
) -> None:
    output = run("java", "-cp", path(*WITHOUT_LIBRARY), "Once", ends_with=1)
    assert "UnsatisfiedLinkError: libgroupnorm.so is neither in jna.library.path nor" in output
    assert "groupnorm.library" in output


def test_a_property_that_names_no_library_says_so(
    compiled: Sequence[pathlib.Path], tmp_path: pathlib.Path
) -> None:
    option = f"-Dgroupnorm.library={tmp_path}/absent.so"
    output = run("java", option, "-cp", path(*compiled), "Once", ends_with=1)
    assert f"groupnorm.library={tmp_path}/absent.so cannot be loaded" in output


def test_another_library_of_that_name_is_refused(
    compiled: Sequence[pathlib.Path], tmp_path: pathlib.Path
) -> None:
    source = tmp_path / "other.c"
    source.write_text("int gn_abi_version(void) { return 7; }\n")
    library = tmp_path / "libgroupnorm.so"
    run("cc", "-shared", "-fPIC", source, "-o", library)
    option = f"-Dgroupnorm.library={library}"
    output = run("java", option, "-cp", path(*compiled), "Once", ends_with=1)
    assert "UnsatisfiedLinkError" in output
    assert "version 7 of the C interface" in output


# --- What is delivered


@pytest.mark.parametrize("wrong", ["linux-other", "=LICENSE", "linux-other=absent.so"])
def test_build_refuses_a_library_that_is_none(wrong: str) -> None:
    assert f"'{wrong}': must be PREFIX=LIBRARY" in run("java/build", wrong, ends_with=1)


def test_jar_has_what_it_should(jar: pathlib.Path) -> None:
    names = zipfile.ZipFile(jar).namelist()
    assert "io/github/groupnorm/GroupNormalization.class" in names
    libraries = [name for name in names if re.fullmatch(r"linux-[\w-]+/libgroupnorm\.so", name)]
    assert len(libraries) == 2
    assert "linux-other/libgroupnorm.so" in libraries
    assert "LICENSE" in names
    manifest = zipfile.ZipFile(jar).read("META-INF/MANIFEST.MF").decode()
    assert "Automatic-Module-Name: io.github.groupnorm" in manifest
    for kind, part in (("sources", "GroupNormalization.java"), ("javadoc", "index.html")):
        others = zipfile.ZipFile(jar.with_name(f"{jar.stem}-{kind}.jar")).namelist()
        assert any(name.endswith(part) for name in others), kind


def test_the_library_in_the_jar_needs_the_c_library_alone(jar: pathlib.Path) -> None:
    output = run("objdump", "-p", LIBRARY)
    needed = set(re.findall(r"NEEDED +(\S+?)\.so", output))
    assert needed <= {"libc", "libm", "ld-linux-x86-64", "ld-linux-aarch64"}


def test_pom_has_the_version_of_the_header() -> None:
    pom = xml.etree.ElementTree.parse(ROOT / "java" / "pom.xml")
    assert pom.findtext("{http://maven.apache.org/POM/4.0.0}version") == groupnorm.__version__
