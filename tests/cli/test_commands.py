"""info, check, bench, groups, and command lines that are refused."""

import json

import numpy
import pytest

BENCH_KEYS = [
    "norm",
    "shape",
    "groups",
    "dtype",
    "layout",
    "activation",
    "direction",
    "threads",
    "target",
    "hot",
    "p50_us",
    "p99_us",
    "gb_per_s",
    "copy_p50_us",
    "copy_ratio",
    "max_error_eps",
]
SMALL = ["--shape", "2x8x5x7", "--groups", 2]


@pytest.fixture
def targets(cli):
    return json.loads(cli.ok("info", "--json"))["targets"]


def bench(cli, *arguments, **options):
    out = cli.ok("bench", "--seconds", 0.02, "--json", *arguments, **options)
    assert out.count("\n") == 1
    return json.loads(out)


def test_info(cli):
    info = json.loads(cli.ok("info", "--json"))
    assert list(info) == ["version", "targets", "target", "threads", "caches"]
    assert info["version"] == cli.ok("--version").strip()
    assert info["targets"][-1] == "scalar"
    assert info["target"] == info["targets"][0]
    assert info["threads"] >= 1
    assert set(info["caches"]) == {"l1d", "l2", "l3"}
    text = cli.ok("info")
    assert info["version"] in text and f"target   {info['target']}\n" in text


def test_info_reads_the_environment(cli):
    env = {"GROUPNORM_TARGET": "scalar", "GROUPNORM_NUM_THREADS": "3"}
    info = json.loads(cli.ok("info", "--json", env=env))
    assert (info["target"], info["threads"]) == ("scalar", 3)


def test_an_unavailable_target(cli, targets):
    env = {"GROUPNORM_TARGET": "avx9"}
    info = json.loads(cli.ok("info", "--json", env=env))
    assert info["target"] is None
    assert "GROUPNORM_TARGET=avx9 is not available" in cli.ok("info", env=env)
    cli.save("x.npy", numpy.ones((2, 4), "f4"))
    for command in (
        ["check", "group/f32/first/6x6/g3"],
        ["bench", *SMALL],
        ["run", "x.npy", "--norm", "layer", "-o", "y.npy"],
    ):
        by_environment = cli.refused(*command, env=env)
        assert "GROUPNORM_TARGET=avx9" in by_environment
        by_flag = cli.refused(*command, "--target", "avx9")
        assert "--target avx9" in by_flag
        for message in (by_environment, by_flag):
            assert f"available: {', '.join(targets)}" in message
    # The reference needs no instruction set.
    cli.ok("run", "x.npy", "--norm", "layer", "--reference", "-o", "y.npy", env=env)


def test_every_target_runs_when_asked_for(cli, targets):
    cli.save("x.npy", numpy.ones((2, 4), "f4"))
    for target in targets:
        env = {"GROUPNORM_TARGET": target}
        assert json.loads(cli.ok("info", "--json", env=env))["target"] == target
        assert f"({target}, " in cli.ok("check", "first/6x6", env=env)
        assert f"({target}, " in cli.ok("check", "first/6x6", "--target", target)
        assert bench(cli, *SMALL, env=env)["target"] == target
        assert bench(cli, *SMALL, "--target", target)["target"] == target
        out = cli.ok("run", "x.npy", "--norm", "layer", "-o", "y.npy", "--target", target)
        assert f"target   {target}, " in out


def test_check_runs_every_case_on_every_target(cli, targets):
    names = cli.ok("check", "--list").splitlines()
    assert len(names) == len(set(names)) > 1000
    for target in targets:
        out = cli.ok("check", "--target", target).splitlines()
        assert [line.split()[-1] for line in out[:-1]] == names
        assert all(line.startswith("ok ") for line in out[:-1])
        assert f"{len(names)} of {len(names)} cases within bound ({target}, " in out[-1]


def test_check_backward(cli, targets):
    out = cli.ok("check", "--backward").splitlines()
    names = cli.ok("check", "--list", "--backward").splitlines()
    assert [line.split()[-1] for line in out[:-1]] == names
    assert all(line.startswith("ok ") for line in out[:-1])
    assert f"{len(names)} of {len(names)} cases within bound" in out[-1]
    # Gradients, not y: their bound is another.
    assert " of 4 " in out[0] and " of 3 " in cli.ok("check", names[0])
    for target in targets:
        out = cli.ok("check", "--backward", "first/6x6", "--target", target)
        assert f"within bound ({target}, " in out
    out = cli.ok(
        *("check", "--backward", "--shape", "3x6x11", "--norm", "rms"),
        *("--dtype", "f16", "--param-dtype", "f32", "--activation", "hard_swish"),
    )
    assert "rms/3x6x11" in out and "1 of 1 cases" in out


def test_check_chooses_by_pattern(cli):
    names = cli.ok("check", "--list").splitlines()
    assert cli.ok("check", "--list", "layer/").splitlines() == [n for n in names if "layer/" in n]
    chosen = cli.ok("check", "--list", "group/f16*silu", "instance/bf16").splitlines()
    assert chosen == [
        n
        for n in names
        if "instance/bf16" in n or ("group/f16" in n and "silu" in n.split("group/f16")[1])
    ]
    assert chosen
    assert "no case matches 'nosuch'" in cli.refused("check", "layer/", "nosuch")


def test_check_takes_a_shape(cli):
    out = cli.ok(
        "check",
        "--shape",
        "3x6x11",
        "--norm",
        "layer",
        "--dtype",
        "bf16",
        "--param-dtype",
        "f32",
        "--layout",
        "channels_last",
        "--activation",
        "gelu",
        "--correction",
        1,
        "--eps",
        1e-3,
        "--mean",
        5,
        "--deviation",
        2,
        "--threads",
        2,
        "--seed",
        7,
    )
    assert "layer/3x6x11" in out
    assert "1 of 1 cases" in out and "2 threads, seed 7" in out


@pytest.mark.parametrize("dtype", ["f32", "f64", "f16", "bf16"])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_bench_json(cli, dtype, layout):
    result = bench(cli, *SMALL, "--dtype", dtype, "--layout", layout, "--threads", 1)
    assert set(BENCH_KEYS) <= set(result)
    expected = {
        "norm": "group",
        "shape": "2x8x5x7",
        "groups": 2,
        "dtype": dtype,
        "layout": layout,
        "activation": "none",
        "direction": "forward",
        "threads": 1,
        "hot": False,
    }
    assert {key: result[key] for key in expected} == expected
    assert 0 < result["p50_us"] <= result["p99_us"]
    assert result["copy_p50_us"] > 0
    assert result["copy_ratio"] == pytest.approx(result["p50_us"] / result["copy_p50_us"], rel=1e-4)
    size = {"f32": 4, "f64": 8, "f16": 2, "bf16": 2}[dtype] * 2 * 8 * 5 * 7
    assert result["gb_per_s"] == pytest.approx(2 * size / result["p50_us"] * 1e-3, rel=1e-4)
    assert 0 <= result["max_error_eps"] <= 4


def test_bench_flags(cli):
    hot = bench(cli, *SMALL, "--hot", "--in-place", "--activation", "silu", "--threads", 2)
    assert (hot["hot"], hot["in_place"], hot["activation"], hot["threads"]) == (
        True,
        True,
        "silu",
        2,
    )
    assert bench(cli, "--shape", "8x32", "--norm", "instance")["groups"] == 32
    text = cli.ok("bench", "--seconds", 0.02, *SMALL)
    assert "p50 " in text and "p99 " in text and " GB/s" in text and " copies" in text


@pytest.mark.parametrize("flags", [[], ["--in-place"], ["--hot", "--in-place"]])
def test_bench_backward(cli, flags):
    result = bench(cli, *SMALL, "--backward", "--dtype", "f16", *flags)
    assert set(BENCH_KEYS) <= set(result)
    assert result["direction"] == "backward"
    assert result["in_place"] == ("--in-place" in flags)
    # Reads x and dy, writes dx.
    assert result["gb_per_s"] == pytest.approx(
        3 * 2 * 2 * 8 * 5 * 7 / result["p50_us"] * 1e-3, rel=1e-4
    )
    assert result["copy_ratio"] == pytest.approx(result["p50_us"] / result["copy_p50_us"], rel=1e-4)
    # Only the worst of dx, dgamma and dbeta is told, and all are f16: a neighbour at most.
    assert 0 <= result["max_error_eps"] <= 1
    text = cli.ok("bench", "--seconds", 0.02, *SMALL, "--backward", *flags)
    assert text.startswith("backward ") and " of 3 x " in text


def test_groups(cli):
    lines = cli.ok("groups", 320).splitlines()
    rows = [tuple(map(int, line.split()[:2])) for line in lines[1:]]
    assert rows == [(g, 320 // g) for g in range(1, 321) if 320 % g == 0]
    suggested = [line for line in lines if "suggested" in line]
    assert len(suggested) == 1 and suggested[0].split()[:2] == ["32", "10"]
    assert cli.ok("groups", 1).count("suggested") == 1


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ([], "subcommand"),
        (["nosuch"], "nosuch"),
        (["info", "--nosuch"], "--nosuch"),
        (["groups"], "channels"),
        (["groups", "0"], "channels"),
        (["groups", "-3"], "channels"),
        (["groups", "ten"], "channels"),
        (["groups", "99999999999999999999"], "channels"),
        (["bench", "--groups", "2"], "--shape"),
        (["bench", "--shape", "2x8x5"], "--groups: needed"),
        (
            ["bench", "--shape", "2x8x5", "--groups", "3"],
            "divide the 8 channels; got 3",
        ),
        (["bench", "--shape", "2x8x5", "--groups", "0"], "got 0"),
        (["bench", "--shape", "2x8x5", "--groups", "-2"], "got -2"),
        (
            ["bench", "--shape", "3x8", "--norm", "ghost_batch", "--groups", "2"],
            "divide the 3 examples",
        ),
        (
            ["bench", "--shape", "2x8x5", "--norm", "layer", "--groups", "2"],
            "means nothing to --norm layer",
        ),
        (["bench", "--shape", "8", "--norm", "layer"], "--shape"),
        (["bench", "--shape", "", "--norm", "layer"], "--shape"),
        (["bench", "--shape", "2x", "--norm", "layer"], "--shape"),
        (["bench", "--shape", "2x8x5.5", "--norm", "layer"], "--shape"),
        (["bench", "--shape", "2x-8", "--norm", "layer"], "--shape"),
        (
            ["bench", "--shape", "2x8x99999999999999999999", "--norm", "layer"],
            "--shape",
        ),
        (
            ["bench", "--shape", "2x8x4294967296x4294967296", "--norm", "layer"],
            "--shape",
        ),
        (
            ["bench", "--shape", "4294967296x4294967296", "--norm", "layer"],
            "below 2^63",
        ),
        (["bench", "--shape", "1000000x1000000x1000", "--norm", "layer"], "of memory"),
        (["bench", "--shape", "0x8x5", "--norm", "layer"], "empty"),
        (
            ["bench", *map(str, SMALL), "--dtype", "f8"],
            "'f8' is not one of f32|f64|f16|bf16",
        ),
        (["bench", *map(str, SMALL), "--layout", "nchw"], "--layout"),
        (["bench", *map(str, SMALL), "--activation", "tanh"], "--activation"),
        (["bench", *map(str, SMALL), "--norm", "max"], "--norm"),
        (["bench", *map(str, SMALL), "--eps", "-1"], "eps"),
        (["bench", *map(str, SMALL), "--eps", "nan"], "eps"),
        (["bench", *map(str, SMALL), "--eps", "small"], "--eps"),
        (["bench", *map(str, SMALL), "--correction", "2"], "correction"),
        (["bench", *map(str, SMALL), "--param-dtype", "f64"], "gamma and beta"),
        (["bench", *map(str, SMALL), "--threads", "0"], "--threads"),
        (["bench", *map(str, SMALL), "--threads", "1025"], "--threads"),
        (["bench", *map(str, SMALL), "--seconds", "-1"], "--seconds"),
        (
            ["check", "--shape", "1x4", "--norm", "instance", "--correction", "1"],
            "two elements",
        ),
        (["check", "--groups", "2"], "--shape"),
        (["check", "--mean", "2"], "--shape"),
        (["check", "layer", "--shape", "2x8"], "--shape"),
        (["run"], "x"),
        (["run", "x.npy", "--groups", "2"], "--output"),
        (["run", "x.npy", "-o", "y.npy"], "--groups: needed"),
        (
            ["run", "x.npy", "--groups", "3", "-o", "y.npy"],
            "divide the 4 channels; got 3",
        ),
        (["run", "x.npy", "--norm", "batch_given", "-o", "y.npy"], "--norm"),
        (
            ["run", "x.npy", "--norm", "layer", "-o", "y.npy", "--stats", "y.npy"],
            "two files",
        ),
        (
            [
                "run",
                "x.npy",
                "--norm",
                "layer",
                "-o",
                "y.npy",
                "--target",
                "scalar",
                "--reference",
            ],
            "--reference",
        ),
        (["run", "x.npy", "--norm", "layer", "-o", "y.npy", "more.npy"], "more.npy"),
    ],
)
def test_bad_command_lines(cli, arguments, reason):
    cli.save("x.npy", numpy.ones((2, 4, 3), "f4"))
    assert reason in cli.refused(*arguments)
    assert cli.files() == ["x.npy"]


@pytest.mark.parametrize("command", [[], ["info"], ["run"], ["check"], ["bench"], ["groups"]])
def test_help(cli, command):
    assert "Usage: groupnorm" in cli.ok(*command, "--help")


def test_help_says_what_stats_hold(cli):
    assert "[2, N / block.examples, C / block.channels]" in cli.ok(
        "run", "--help", env={"COLUMNS": "1000"}
    )
