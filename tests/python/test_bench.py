"""bench/: tables from fixed results, and who is refused or skipped in a comparison."""

import dataclasses
import itertools
import json
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))
import compare
import instructions
import report
import rivals

from groupnorm._cli import contest, contest_torch
from groupnorm._cli.command import BadInput


def case(name, **counters):
    values = {
        "p50_us": 10.0,
        "copy_p50_us": 5.0,
        "copy_ratio": 2.0,
        "set_bytes": 1,
        "elements": 100,
    }
    return {"name": f"{name}/manual_time", **values, **counters}


def read(tmp_path, benchmarks=(), cases=()):
    context = {"processor": "a CPU", "target": "avx2", "last_level_cache": "1048576"}
    paths = []
    for key, values in (("benchmarks", benchmarks), ("cases", cases)):
        paths.append(tmp_path / f"{key}.json")
        paths[-1].write_text(json.dumps({"context": context, key: list(values)}))
    return report.read(paths)


def compared(threads=1, **times):
    return {
        "shape": "8x512",
        "groups": 32,
        "dtype": "f32",
        "layout": "channels_first",
        "direction": "forward",
        "threads": threads,
        "hot": False,
        "bytes_moved": 8,
        "contestants": {
            name: {"p50_us": us, "p99_us": us, "copies": us / times["copy"], "max_error_eps": 0.5}
            for name, us in times.items()
        },
        "skipped": {"ncnn": "not installed (ncnn)"},
    }


def test_table_marks_what_is_beyond_its_limit(tmp_path):
    first, last = (f"forward/f32/{each}/2x64x56x56/g32" for each in report.LAYOUTS)
    found = report.tables(
        read(
            tmp_path,
            [
                case(f"{first}/threads:1/rotating", copy_ratio=1.304),
                case(f"{last}/threads:1/rotating", copy_ratio=1.606),
                case(f"{first}/threads:2/hot", copy_ratio=1.31),
            ],
        )
    )
    row = "| [2, 64, 56, 56], 32 | 1.30 / **1.61** | - | - | **1.31** / - | 1.3 / 1.6 |"
    assert found["forward"].splitlines()[2:] == [row]
    assert "backward" not in found and "sweep" not in found


@pytest.mark.parametrize("direction, table", [("forward+silu", "silu"), ("backward", "backward")])
def test_directions_have_tables_of_their_own(tmp_path, direction, table):
    name = f"{direction}/f32/channels_last/2x64x56x56/g32/threads:1/rotating"
    found = report.tables(read(tmp_path, [case(name, plain_ratio=2.0)]))
    assert set(found) == {table, "machine"} and "- / **2.00**" in found[table]


def test_failed_cases_are_not_in_the_table(tmp_path):
    name = "forward/f32/channels_first/2x64x56x56/g32/threads:1/rotating"
    assert not read(tmp_path, [case(name, error_occurred=True)]).cases


def test_small_threads_and_sweep(tmp_path):
    stem = "forward/f32/channels_first"
    found = report.tables(
        read(
            tmp_path,
            [
                case(f"{stem}/1x32x8x8/g8/threads:1/hot", p50_us=0.251),
                case(f"{stem}/1x32x96x96x96/g1/threads:1/rotating", p50_us=15, copy_p50_us=10),
                case(f"{stem}/1x32x96x96x96/g1/threads:2/rotating", p50_us=10, copy_p50_us=5),
                case(f"{stem}/1x64x125x125/g32/threads:1/rotating", p50_us=0.1, set_bytes=2e6),
                case(f"{stem}/10x64x125x125/g32/threads:1/rotating", p50_us=0.13, set_bytes=2e6),
            ],
        )
    )
    assert "| **0.251** | 0.25 |" in found["small"]
    assert "| **1.50** | 2.00 | - | - |" in found["threads"]
    assert "| 1.000 |" in found["sweep"] and "| **1.300** |" in found["sweep"]


def test_compared_marks_who_is_ahead(tmp_path):
    cases = [compared(ours=4.0, torch=3.0, jax=8.0, copy=2.0), compared(2, ours=4.0, copy=2.0)]
    found = report.tables(read(tmp_path, cases=cases))
    rows = found["compare-forward-f32-channels-first"].splitlines()[2:]
    assert "| 1 | 4 (0.5) | **3** (0.5) | 8 (0.5) | 2 (0.5) |" in rows[0]
    assert "| 2 | 4 (0.5) | - | - | 2 (0.5) |" in rows[1]
    assert "| ncnn | not installed (ncnn) |" in found["compare-skipped"]
    assert "| forward f32 channels_first | 0 of 1 | 0.75 to 0.75 |" in found["compare-first"]
    behind = found["compare-behind"].splitlines()[2:]
    where = "forward f32 channels_first, 1 thread, rotating"
    assert behind == [f"| [8, 512], 32 | {where} | 4 | torch | 3 |"]


def test_compared_says_so_where_nobody_is_ahead(tmp_path):
    found = report.tables(read(tmp_path, cases=[compared(ours=4.0, torch=6.0, copy=2.0)]))
    assert "| 1 of 1 | 1.50 to 1.50 |" in found["compare-first"]
    assert found["compare-behind"] == "None.\n"


def test_update_replaces_what_is_between_the_markers(tmp_path, capsys):
    read(tmp_path, cases=[compared(ours=4.0, torch=3.0, copy=2.0)])
    plain = tmp_path / "plain.md"
    plain.write_text("no table\n")
    path = tmp_path / "page.md"
    mark = "<!-- bench:compare-forward-f32-channels-first -->\n"
    path.write_text(f"before\n{mark}old\n<!-- /bench -->\nafter\n")
    assert report.main([str(tmp_path / "cases.json"), "--update", str(path), str(plain)]) == 0
    assert capsys.readouterr().out == f"wrote    {path}\n"
    text = path.read_text()
    assert text.startswith(f"before\n{mark}| shape") and text.endswith(
        "|\n<!-- /bench -->\nafter\n"
    )
    assert "old" not in text

    other = tmp_path / "other.md"
    other.write_text("<!-- bench:none -->\n<!-- /bench -->\n")
    arguments = [str(tmp_path / "cases.json"), "--update", str(path), str(other)]
    assert report.main(arguments) == 2
    assert path.read_text() == text and "asks for table none" in capsys.readouterr().err


def test_instructions_are_counted_a_call_in_kernels_and_around_them():
    listing = """
7,000 (100.0%)  PROGRAM TOTALS
--------
6,000 (85.71%)  ???:void groupnorm::detail::N_AVX2::ReduceRuns<float>(Runs const&) [/bin/x]
1,000 (14.29%)  a/b.h:groupnorm::Plan::forward(groupnorm::Forward const&) const [/bin/x]
"""
    assert instructions.split(listing) == (6000, 1000)
    profile = (
        "fn=(7) groupnorm::detail::check_forward(int)\n0 5\n\nfn=(2) a\ncfn=(7)\ncalls=3 0\n0 5\n"
    )
    assert instructions.calls_of(profile, "forward") == 3
    with pytest.raises(BadInput, match="no call of Plan::backward"):
        instructions.calls_of(profile, "backward")


def test_instructions_have_a_table_for_each_direction(tmp_path):
    path = tmp_path / "instructions.json"
    counted = {
        "direction": "backward",
        "layout": "channels_last",
        "shape": "8x512",
        "groups": 32,
        "target": "avx2",
        "kernels": 12.34,
        "around": 0.5,
    }
    path.write_text(json.dumps({"instructions": [counted]}))
    found = report.tables(report.read([path]))
    assert found["instructions-backward"].splitlines()[2:] == [
        "| [8, 512], 32 | - | 12.3 + 0.5 |",
    ]
    assert "instructions-forward" not in found


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.json"
    for text in ("{", "{}", '{"context": {}, "cases": [{}]}'):
        path.write_text(text)
        with pytest.raises(BadInput, match=r"x\.json.*is not JSON of"):
            report.read([path])
    with pytest.raises(BadInput, match="cannot be read"):
        report.read([tmp_path / "none.json"])


def test_plots(tmp_path):
    pytest.importorskip("matplotlib")
    results = read(
        tmp_path,
        [
            case("forward/f32/channels_first/2x64x56x56/g32/threads:1/rotating"),
            *(
                case(f"forward/f32/{layout}/{shape}/g32/threads:1/rotating")
                for layout in report.LAYOUTS
                for shape in ("1x64x125x125", "1x64x156250")
            ),
        ],
        [compared(ours=4.0, torch=3.0, copy=2.0)],
    )
    written = report.plot(results, tmp_path / "plots")
    assert [path.name for path in written] == ["forward.png", "sweep.png", "sizes.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_results_of_the_other_programs_have_tables(tmp_path):
    accuracy = [
        {"library": "ours", "mean": 0.0, "max_error_eps": 0.5},
        {"library": "torch", "mean": 0.0, "max_error_eps": 3.5},
        {"library": "jax", "mean": 0.0, "max_error_eps": None},
    ]
    value = {"shape": "8x512", "groups": 32, "dtype": "f32", "layout": "channels_first", "us": 3.0}
    row = {"case": "[2, 3]", "threads": 1, "way": "ours", "median": 1.25, "error": 1e-6}
    for name, content in (
        ("accuracy", {"context": {}, "accuracy": accuracy}),
        ("values", {"values": [{**value, "ratios": {"NaN": 1.5}}]}),
        ("runtimes", {"norms": [row], "errors": [], "models": [{**row, "peak": 2.0, "nodes": 3}]}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    found = report.tables(report.read(sorted(tmp_path.glob("*.json"))))
    assert found["accuracy"].splitlines()[2:] == [
        "| ours | 0.5 |",
        "| torch | **3.5** |",
        "| jax | **nan** |",
    ]
    assert "| [8, 512], 32, channels_first | 3.00 | 1.50 |" in found["values"]
    assert "| [2, 3] | 1 | 1.25 |" in found["onnxruntime-norms"]
    assert "1.2 ms, 1e-06, 2 MiB, 3 nodes" in found["onnxruntime-models"]
    assert "onnxruntime-errors" not in found and "headline" not in found


@pytest.fixture
def match():
    """A tiny case: its arena and job."""
    tiny = contest.Case("", (2, 8, 5, 7), 2)
    setting = contest.Setting("torch", "f32", "channels_first", "none", False, True, False, 1)
    arena = contest_torch.arena(tiny, setting)
    return arena, rivals.Job(tiny, setting, *arena.params)


def by_torch(shift):
    def make(job):
        def call(x):
            return torch.nn.functional.group_norm(x, job.case.groups, job.gamma, job.beta) + shift

        return contest.Rival(torch.clone, call, lambda y: y)

    return make


def test_a_wrong_rival_is_refused(match):
    arena, job = match
    makers = {"right": by_torch(0), "wrong": by_torch(0.5), "nan": by_torch(torch.nan)}
    arena, skipped = compare.recruit(arena, job, makers, rivals.Absent)
    assert not skipped
    outcome = contest.play(job.case, arena, 0, compare._SOMETHING_ELSE * 2**23)
    assert outcome.refused == ["wrong", "nan"] and not outcome.wrong
    assert set(outcome.times) == {"ours", "torch", "copy", "right"}
    found = compare.as_json(outcome, job.setting, skipped)
    assert found["skipped"]["wrong"].startswith("wrong: off by")
    assert "wrong" not in found["contestants"] and found["contestants"]["right"]["copies"] > 0


def test_nobody_is_timed_if_ours_is_wrong(match):
    arena, job = match
    arena = dataclasses.replace(arena, bound=1e-9)
    outcome = contest.play(job.case, arena, 0)
    assert outcome.wrong and not outcome.times and not outcome.refused


def test_nobody_pays_for_giving_back_the_result_of_another(monkeypatch):
    now = 0

    class Mapped:
        def __del__(self):
            nonlocal now
            now += 1_000_000

    def call(_tensors):
        nonlocal now
        now += 1_000
        return object()

    monkeypatch.setattr(contest.time, "perf_counter_ns", lambda: now)
    contestant = contest._Contestant(call, [None, None], [Mapped(), Mapped()])
    contestant.play(itertools.cycle(range(2)))  # settles in one place and is timed in the other
    assert contestant.microseconds == [1.0]
    assert now == 2_002_000  # both results are gone


def test_a_missing_rival_is_skipped(match):
    def missing(job):
        import no_such_library  # noqa: F401

    def unable(job):
        raise rivals.Absent("no f32")

    def broken(job):
        raise RuntimeError("cannot\nat all")

    arena, job = match
    makers = {"missing": missing, "unable": unable, "broken": broken, "right": by_torch(0)}
    arena, skipped = compare.recruit(arena, job, makers, rivals.Absent)
    assert list(arena.rivals) == ["right"]
    assert [(each.rival, each.why) for each in skipped] == [
        ("missing", "not installed (no_such_library)"),
        ("unable", "no f32"),
        ("broken", "cannot: cannot"),
    ]


@pytest.mark.parametrize("name", sorted(rivals.RIVALS))
def test_rivals_compute_group_normalization(match, name):
    arena, job = match
    layout = "channels_last" if name == "mlx" else "channels_first"
    setting = dataclasses.replace(job.setting, layout=layout, activation="silu")
    arena = contest_torch.arena(job.case, setting)
    job = rivals.Job(job.case, setting, *arena.params)
    arena, skipped = compare.recruit(arena, job, {name: rivals.RIVALS[name]}, rivals.Absent)
    if skipped:
        pytest.skip(f"{name}: {skipped[0].why}")
    errors = contest.play(job.case, arena, 0).errors
    assert 0 < errors[name] < 200
