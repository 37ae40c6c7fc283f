"""What a new user does first, from the artefact to the first result."""

import subprocess
import sys
from pathlib import Path

import nibabel
import numpy
import pytest
from pages import ROOT, blocks
from PIL import Image


def test_from_a_wheel_to_a_normalized_nifti_file_in_two_lines(tmp_path: Path) -> None:
    wheels = sorted((ROOT / "build/dist").glob("groupnorm-*.whl"))
    if not wheels:
        pytest.skip("build/dist has no wheel: scripts/release --quick")
    page = ROOT / "docs/get-started/command-line.md"
    lines = next(b for b in blocks(page) if "nii.gz" in b.code).code.splitlines()
    assert len(lines) == 2
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    x = numpy.load(ROOT / "data/mr_head.npy")[0].T.astype("float32")
    nibabel.save(nibabel.Nifti1Image(x[..., None, :8], numpy.eye(4)), tmp_path / "scan.nii.gz")
    commands = " && ".join(lines).replace("'groupnorm[io]'", f"'{wheels[-1]}[io]'")
    subprocess.run(
        ["bash", "-ec", f". {venv}/bin/activate && {commands}"], cwd=tmp_path, check=True
    )
    y = nibabel.Nifti1Image.from_filename(tmp_path / "normalized.nii.gz").get_fdata()
    assert y.shape == (*x.shape[:2], 1, 8)
    assert abs(y.mean()) < 1e-4 and abs(y.std() - 1) < 1e-2


def test_the_first_program_of_cpp_has_ten_lines_and_that_of_arm_five_commands() -> None:
    cpp = {b.file: b.code for b in blocks(ROOT / "docs/get-started/cpp.md")}
    assert len([line for line in cpp["main.cpp"].splitlines() if line.strip()]) <= 10
    first, second, *_ = [b for b in blocks(ROOT / "docs/guides/arm.md") if b.language == "sh"]
    assert len((first.code + second.code).splitlines()) == 5


def test_slices_are_drawn_before_and_after(tmp_path: Path) -> None:
    x = numpy.random.default_rng(0).normal(size=(1, 6, 8, 10)).astype("float32")
    for name, volume in (("x", x), ("y", 2 * x + 1)):
        numpy.save(tmp_path / f"{name}.npy", volume)
    program = str(ROOT / "data/draw_slices.py")
    arguments = ["x.npy", "y.npy", "slices.png", "--slabs", "3"]
    subprocess.run([sys.executable, program, *arguments], cwd=tmp_path, check=True)
    picture = Image.open(tmp_path / "slices.png")
    assert picture.size == (2 * 3 * 10, 2 * (2 * 8 + 16))
    rows = numpy.asarray(picture)
    assert numpy.array_equal(rows[16:32], rows[48:64])  # the grey scale is the row's own
    assert len(numpy.unique(rows[16:32])) > 10


def test_long_commands_show_progress_from_the_first_second(tmp_path: Path) -> None:
    script = f"""
      source {ROOT}/scripts/setup.sh
      watched docs-progress bash -c 'echo "[1/2] one"; sleep 4; echo "[2/2] two"'
    """
    with subprocess.Popen(["bash", "-ec", script], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        lines = list(running.stdout)
    assert running.returncode == 0
    assert len(lines) >= 3 and "[1/2] one" in lines[0] + lines[1] and "[2/2] two" in lines[-1]
