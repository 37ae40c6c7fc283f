"""Classes of modules that compute what theirs does, on the engine: made where they are needed.

`derive` puts mixins before a class. What comes of it looks like that class: its name, package,
``isinstance``, constructor and attributes; only what the mixins define differs.
"""

import functools
from typing import Any

from torch import nn


class Derived(nn.Module):
    """First of the bases of a class that `derive` made; the last is the class it was made of."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Pickle finds a class by its name, and of this name there is another.
        reduced: Any = super().__reduce_ex__(max(protocol, 2))
        return (_new, type(self).__bases__[1:], *reduced[2:])


def derive(*bases: type[nn.Module]) -> type[nn.Module]:
    """The class of these mixins before the last of the bases, which it passes for."""
    return _derive(bases)


@functools.cache
def _derive(bases: tuple[type[nn.Module], ...]) -> type[nn.Module]:
    origin = bases[-1]
    names = ("__module__", "__qualname__", "__doc__", "__init__")
    namespace = {name: getattr(origin, name) for name in names}
    namespace["takes_activation"] = getattr(bases[0], "takes_activation", False)
    return type(origin.__name__, (Derived, *bases), namespace)


def origin_of(module: nn.Module) -> type[nn.Module] | None:
    """What the class of a module was derived of; None where it was not."""
    bases = type(module).__bases__
    return bases[-1] if bases[0] is Derived else None


def _new(*bases: type[nn.Module]) -> nn.Module:
    cls = derive(*bases)
    return cls.__new__(cls)
