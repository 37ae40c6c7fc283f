"""The same bits from run to run, on any number of threads, on each instruction set."""

import json

import numpy


def test_every_run_gives_the_same_bits(cli):
    rng = numpy.random.default_rng(5)
    cli.save("x.npy", rng.standard_normal((2, 12, 70, 90)).astype("f4"))
    for target in json.loads(cli.ok("info", "--json"))["targets"]:
        seen = set()
        for threads in (1, 1, 2, 5, 5):
            flags = ("--target", target, "--threads", threads, "--stats", "s.npy")
            cli.ok("run", "x.npy", "--groups", 3, "-o", "y.npy", *flags)
            files = (cli.directory / "y.npy", cli.directory / "s.npy")
            seen.add(tuple(file.read_bytes() for file in files))
        assert len(seen) == 1, target
