"""Numbers on the command line and in the environment: decimal, in range, or refused."""

import json

import numpy
import pytest

SHAPE = ["--shape", "16x16x5"]
NOT_DECIMAL = ["0x10", "+5", "1_000", " 5", "5 ", "5x", "5,0", "\N{ARABIC-INDIC DIGIT FIVE}"]
NOT_WHOLE = ["1e1", "1.0", "5.", "inf", "nan", "99999999999999999999"]
NOT_FINITE = ["inf", "-inf", "nan", "NAN", "infinity", "1e999", "1e", ".", "0x1p3", "one"]
# Command lines that want one value more, by the option that it is of.
WHOLE = {
    "--groups": ["bench", *SHAPE, "--seconds", 0, "--groups"],
    "--correction": ["bench", *SHAPE, "--norm", "layer", "--seconds", 0, "--correction"],
    "--threads": ["check", "first/6x6", "--threads"],
    "--seed": ["check", "first/6x6", "--seed"],
    "channels": ["groups"],
}
REAL = {
    "--eps": ["check", *SHAPE, "--norm", "layer", "--eps"],
    "--mean": ["check", *SHAPE, "--norm", "layer", "--mean"],
    "--deviation": ["check", *SHAPE, "--norm", "layer", "--deviation"],
    "--seconds": ["bench", *SHAPE, "--norm", "layer", "--seconds"],
}


@pytest.mark.parametrize("text", NOT_DECIMAL + NOT_WHOLE)
@pytest.mark.parametrize("option", WHOLE)
def test_not_a_whole_number(cli, option, text):
    assert option in cli.refused(*WHOLE[option], text)


@pytest.mark.parametrize("text", NOT_DECIMAL + NOT_FINITE)
@pytest.mark.parametrize("option", REAL)
def test_not_a_finite_number(cli, option, text):
    assert option in cli.refused(*REAL[option], text)


@pytest.mark.parametrize(
    "option, text, rule",
    [
        ("--threads", "1025", "must be a whole number from 1 to 1024; got '1025'"),
        ("--threads", "-1", "from 1 to 1024; got '-1'"),
        ("--seed", "-1", "must be a whole number from 0 to 18446744073709551615; got '-1'"),
        ("--seed", "18446744073709551616", "got '18446744073709551616'"),
        ("--correction", "2", "must be a whole number from 0 to 1; got '2'"),
        ("--groups", "99999999999999999999", "must be a whole number of 64 bits; got '9999"),
        ("channels", "0", "must be a whole number from 1 to 10000000; got '0'"),
        ("--seconds", "3601", "must be a finite number from 0 to 3600; got '3601'"),
        ("--seconds", "nan", "must be a finite number from 0 to 3600; got 'nan'"),
        ("--eps", "-1e-9", "must be a finite number of at least 0; got '-1e-9'"),
        ("--deviation", "-1", "must be a finite number of at least 0; got '-1'"),
        ("--mean", "inf", "must be a finite number; got 'inf'"),
    ],
)
def test_the_rule_is_told(cli, option, text, rule):
    assert f"{option}: " in cli.refused(*{**WHOLE, **REAL}[option], text)
    assert rule in cli.refused(*{**WHOLE, **REAL}[option], text)


def test_zeros_before_a_number_change_nothing(cli):
    assert cli.ok("groups", "0320") == cli.ok("groups", "320")
    assert "seed 10)" in cli.ok("check", "first/6x6", "--seed", "010")
    bench = ["bench", "--json", "--seconds", 0, "--groups", "010", "--threads", "02", "--shape"]
    result = json.loads(cli.ok(*bench, "2x010x5"))
    assert (result["groups"], result["threads"]) == (10, 2)
    assert "divide the 16 channels; got 10" in cli.refused(*bench, "2x16x5")


def test_numbers_that_are_good(cli):
    assert "seed 18446744073709551615)" in cli.ok(
        "check", "first/6x6", "--seed", 18446744073709551615
    )
    for eps in ("0", "1e-3", "1E-3", ".5", "5.", "001"):
        cli.ok("check", *SHAPE, "--norm", "layer", "--eps", eps, "--mean", "-2.5e1")


@pytest.mark.parametrize("text", [*NOT_DECIMAL, "0", "1025", "-1", "1e1", "many"])
@pytest.mark.parametrize(
    "command",
    [
        ["info"],
        ["check", "first/6x6"],
        ["bench", *SHAPE, "--norm", "layer", "--seconds", 0],
        ["run", "x.npy", "--norm", "layer", "-o", "y.npy"],
    ],
)
def test_the_number_of_threads_in_the_environment(cli, command, text):
    cli.save("x.npy", numpy.ones((2, 4), "f4"))
    message = cli.refused(*command, env={"GROUPNORM_NUM_THREADS": text})
    assert f"GROUPNORM_NUM_THREADS: must be a whole number from 1 to 1024; got '{text}'" in message
    assert cli.files() == ["x.npy"]
    if command[0] != "info":  # what is not read does no harm
        cli.ok(*command, "--threads", 1, env={"GROUPNORM_NUM_THREADS": text})


def test_a_good_number_of_threads_in_the_environment(cli):
    for text, threads in (("3", 3), ("010", 10)):
        info = json.loads(cli.ok("info", "--json", env={"GROUPNORM_NUM_THREADS": text}))
        assert info["threads"] == threads
    empty = cli.ok("info", "--json", env={"GROUPNORM_NUM_THREADS": ""})
    assert empty == cli.ok("info", "--json")
