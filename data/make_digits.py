"""Writes digits.npy and digits_labels.npy beside this file: pip install scikit-learn==1.7.2, then
python data/make_digits.py."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

digits = load_digits()
images = digits.images[:, np.newaxis]  # [n=1797, c=1, 8, 8], whole numbers from 0 to 16
here = Path(__file__).parent
np.save(here / "digits.npy", images.astype(np.uint8))
np.save(here / "digits_labels.npy", digits.target.astype(np.uint8))
