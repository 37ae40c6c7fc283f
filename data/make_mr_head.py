"""Writes mr_head.npy beside this file: pip install nibabel==5.4.2, then python data/make_mr_head.py."""

from pathlib import Path

import nibabel
import numpy as np

source = Path(nibabel.__file__).parent / "tests" / "data" / "example4d.nii.gz"
image = np.asanyarray(
    nibabel.Nifti1Image.from_filename(source).dataobj
)  # (x, y, slice, time), int16
first = image[..., 0].T[np.newaxis]  # [n=1, c=24 slices, 96, 128]
np.save(
    Path(__file__).with_name("mr_head.npy"),
    np.ascontiguousarray(first, dtype=np.float32),
)
