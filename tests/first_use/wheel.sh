#!/usr/bin/env bash
# wheel.sh WHEEL PYTHON: from a wheel to a normalized NIfTI file, in two lines, in an environment that has
# nothing else.
set -euo pipefail
wheel=$(realpath "$1")
python=$(realpath -s "$(command -v "$2")")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT

"$python" -m venv venv
PATH=$PWD/venv/bin:$PATH
pip install --quiet --disable-pip-version-check numpy nibabel
python - <<'PYTHON'
import nibabel, numpy
volume = numpy.random.default_rng(1).normal(300, 40, (64, 64, 24)).astype("float32")
nibabel.Nifti1Image(volume, numpy.diag([2, 2, 2.2, 1])).to_filename("scan.nii.gz")
PYTHON

pip install --quiet --disable-pip-version-check "$wheel"
python -m groupnorm run scan.nii.gz -o normalized.nii.gz

python - <<'PYTHON'
import nibabel, numpy
scan, y = (nibabel.load(f"{name}.nii.gz") for name in ("scan", "normalized"))
assert (y.affine == scan.affine).all() and y.shape == scan.shape, (y.affine, y.shape)
x = scan.get_fdata()
error = abs(y.get_fdata() - (x - x.mean()) / numpy.sqrt(x.var() + 1e-5)).max()
assert error < 1e-5, error
PYTHON
