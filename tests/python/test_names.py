"""Names of dtypes, layouts and activations: one table in C++, and what else goes by these names."""

import norms
import numpy
import numpy_norms
import pytest

import groupnorm
from groupnorm import _arrays
from groupnorm._cli import contest_numpy, oracle


def test_the_engine_takes_every_name_and_no_other():
    x = numpy.ones((2, 4, 3), "float32")
    for activation in groupnorm.ACTIVATIONS:
        groupnorm.group_norm(x, 2, activation=activation)
    for layout in groupnorm.LAYOUTS:
        groupnorm.group_norm(numpy.ones((2, 4, 4), "float32"), 2, layout=layout)
    known = " or ".join(", ".join(groupnorm.ACTIVATIONS).rsplit(", ", 1))
    with pytest.raises(ValueError, match=f"activation: must be {known}; got 'tanh'"):
        groupnorm.group_norm(x, 2, activation="tanh")
    known = " or ".join(map(repr, groupnorm.LAYOUTS))
    with pytest.raises(ValueError, match=f"layout: must be {known}"):
        groupnorm.group_norm(x, 2, layout="NCHW")


def test_dtypes_are_those_of_arrays():
    assert sorted(groupnorm.DTYPES) == sorted(_arrays._NAMES.values())


def test_every_table_by_activation_has_all_of_them():
    """One that is new needs a formula in each; gelu of plain NumPy has none, for want of erf."""
    every = set(groupnorm.ACTIVATIONS)
    assert set(norms.SLOPE) == set(oracle._SLOPE) == set(numpy_norms.ACTIVATIONS) == every
    assert set(contest_numpy._ACTIVATIONS) == every - {"gelu"}


def test_every_table_of_torch_by_activation_has_all_of_them():
    pytest.importorskip("torch")
    from groupnorm.torch import _ops

    assert tuple(_ops.ACTIVATIONS) == groupnorm.ACTIVATIONS
