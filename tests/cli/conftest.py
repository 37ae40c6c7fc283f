"""The command line under test is the executable that GROUPNORM_CLI names."""

import os
import subprocess

import numpy
import pytest


class Cli:
    """Runs `groupnorm` in a directory of its own, and reads what it wrote."""

    def __init__(self, executable, directory):
        self.executable = executable
        self.directory = directory

    def __call__(self, *arguments, env=None, **options):
        return subprocess.run(
            [self.executable, *map(str, arguments)],
            cwd=self.directory,
            env={**clean_environment(), **(env or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            **options,
        )

    def ok(self, *arguments, **options):
        result = self(*arguments, **options)
        assert result.returncode == 0, (arguments, result.stderr)
        assert result.stderr == ""
        return result.stdout

    def refused(self, *arguments, **options):
        """Exit status 2, nothing on stdout, one line on stderr: that line."""
        result = self(*arguments, **options)
        assert result.returncode == 2, (arguments, result)
        assert result.stdout == ""
        assert result.stderr.startswith("groupnorm: ")
        assert result.stderr.count("\n") == 1 and result.stderr.endswith("\n"), result.stderr
        return result.stderr

    def save(self, name, array):
        numpy.save(self.directory / name, array)
        return name

    def load(self, name):
        return numpy.load(self.directory / name)

    def files(self):
        return sorted(path.name for path in self.directory.iterdir())

    def normalize(self, x, *arguments, **options):
        """y of `groupnorm run` on the array x."""
        self.save("x.npy", x)
        self.ok("run", "x.npy", "-o", "y.npy", *arguments, **options)
        return self.load("y.npy")


def clean_environment():
    mine = ("GROUPNORM_TARGET", "GROUPNORM_NUM_THREADS")
    return {key: value for key, value in os.environ.items() if key not in mine}


@pytest.fixture(scope="session")
def executable():
    path = os.environ.get("GROUPNORM_CLI")
    if not path:
        pytest.exit("GROUPNORM_CLI must name the groupnorm executable", returncode=2)
    return os.path.abspath(path)


@pytest.fixture
def cli(executable, tmp_path):
    return Cli(executable, tmp_path)
