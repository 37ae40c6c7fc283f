"""Plans and threads: what the NumPy and the PyTorch face share."""

import functools

from ._arrays import as_integer
from ._core import Plan, Threads

# Plan(n, c, s, examples, channels, layout, data, param, ...): a call on a shape that has been met
# before looks its plan up instead of making it. Positional arguments only: they are the key.
plan = functools.lru_cache(maxsize=1024)(Plan)

POOL = Threads.pool()

_threads = 0


def set_num_threads(count: int) -> None:
    """Sets how many threads a call on NumPy arrays may use; 0: the default.

    The default is ``GROUPNORM_NUM_THREADS`` or, without it, one for each core that the process may
    run on. The bits of a result do not depend on it. Calls of ``groupnorm.torch`` use the threads
    of PyTorch, ``torch.set_num_threads``.

    Raises:
        TypeError: count is not an integer.
        ValueError: count is negative or above 1024.
    """
    global _threads
    count = as_integer("count", count)
    if not 0 <= count <= 1024:
        raise ValueError(f"count: must be from 0 to 1024; got {count}")
    _threads = count


def get_num_threads() -> int:
    """Returns how many threads a call on NumPy arrays may use."""
    return _threads or POOL.count()


def asked_threads() -> int:
    """Returns what was set, for the engine: 0 stands for its default."""
    return _threads
