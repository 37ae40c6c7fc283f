"""The command line without memory: every allocation is made to fail once."""

import os

import numpy
import pytest

LONG = os.environ.get("GROUPNORM_LONG_TESTS") == "1"


@pytest.fixture
def failing(cli):
    """`groupnorm run` with allocation number k failing; how many allocations there are."""
    library = os.environ.get("GROUPNORM_FAIL_MALLOC")
    if not library:
        pytest.skip("GROUPNORM_FAIL_MALLOC does not name the library")
    cli.save("x.npy", numpy.arange(48, dtype="f4").reshape(2, 4, 6))
    count = cli.directory.parent / "count"

    def run(k):
        env = {"LD_PRELOAD": library, "FAIL_MALLOC": str(k), "FAIL_MALLOC_COUNT": str(count)}
        return cli("run", "x.npy", "--groups", 2, "-o", "y.npy", env=env)

    assert run(-1).returncode == 0
    (cli.directory / "y.npy").unlink()
    return run, int(count.read_text())


def test_every_allocation_that_fails_is_told_and_leaves_nothing(cli, failing):
    run, count = failing
    assert count > 100
    refused = 0
    # By default every seventh, with every one of the last, where the files are written.
    tried = range(count) if LONG else [*range(0, count, 7), *range(count - 20, count)]
    for k in tried:
        result = run(k)
        assert result.returncode in (0, 2), (k, result)
        if result.returncode == 0:
            assert cli.load("y.npy").shape == (2, 4, 6)
            (cli.directory / "y.npy").unlink()
        else:
            refused += 1
            assert result.stderr.startswith("groupnorm: ") and result.stderr.count("\n") == 1
        assert cli.files() == ["x.npy"], k
    assert refused > 0
    print(f"{len(tried)} of {count} allocations failed, {refused} runs refused")
