"""Group normalization in float64 by the definition, and how far from it a result may be."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

# The distance from 1 to the next number, of which errors are told.
EPS = {"f32": 2.0**-23, "f16": 2.0**-10, "bf16": 2.0**-7}

# The largest slope of an activation multiplies an error of what goes into it.
_SLOPE = {"none": 1.0, "relu": 1.0, "silu": 1.1, "gelu": 1.13, "gelu_tanh": 1.13, "hard_swish": 1.5}


def forward_bound(activation: str) -> float:
    """In units of eps (1 + |gamma xhat| + |beta|), as docs/numerics.md promises."""
    return 3 * _SLOPE[activation]


BACKWARD_BOUND = 4.0  # in units of eps and the sum of the absolute terms, as docs/numerics.md says


def forward(
    x: Float64,
    gamma: Float64,
    beta: Float64,
    eps: float,
    activate: Callable[[Float64], Float64],
) -> tuple[Float64, Float64]:
    """y of one group [channels, s], and its unit, from which eps is missing."""
    centred = x - x.mean()
    scaled = centred / np.sqrt(np.mean(centred**2) + eps) * gamma[:, None]
    return activate(scaled + beta[:, None]), 1 + np.abs(scaled) + np.abs(beta)[:, None]
