"""The names of torch that it does not document (groupnorm/torch/_private.py): in one file, and results
are right where a torch has none of them.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import groupnorm.torch

# Attributes of an nn.Module, which every pickle of a model has, and of a module's own class.
_MODULES = {"_parameters", "_buffers", "_modules"}


def test_private_names_stand_in_one_file():
    folder = Path(groupnorm.torch.__file__).parent
    found = {}
    for path in folder.glob("*.py"):
        text = re.sub(r'""".*?"""|#[^\n]*', "", path.read_text(), flags=re.DOTALL)
        names = set(re.findall(r"(?:torch|functional|autograd|library)\.(_[a-zA-Z]\w*)", text))
        names |= set(re.findall(r"from torch[\w.]* import[^\n]*\b(_\w+)", text))
        names |= set(re.findall(r"from torch\.?[\w.]*\._[\w.]* import|import torch\._\w+", text))
        if path.name != "_private.py" and names - {"__file__", "__version__"}:
            found[path.name] = names
    assert found == {}


WITHOUT = """
import importlib, sys, types, warnings
import torch
real = importlib.import_module

def import_module(name, *args):
    if sys._getframe(1).f_globals["__name__"] != "groupnorm.torch._private":
        return real(name, *args)
    asked.append(name)
    return types.ModuleType(name)  # that has none of the names

asked = []
importlib.import_module = import_module
import groupnorm.torch as gt
importlib.import_module = real
assert len(asked) > 8, asked
F = torch.nn.functional
ours = gt.functional
x = torch.randn(2, 8, 5, 7, generator=torch.Generator().manual_seed(0))
w, b = torch.rand(8) + 0.5, torch.randn(8)

def near(f, e):
    torch.testing.assert_close(f, e, rtol=1e-4, atol=1e-4)

def gradients(function, *tensors):
    leaves = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
    y = function(*leaves)
    first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum(f.square().sum() for f in first), leaves[0])
    return [y, *first, *second]

pairs = (
    (lambda x, w, b: ours.group_norm(x, 4, w, b), lambda x, w, b: F.group_norm(x, 4, w, b)),
    (
        lambda x, w, b: ours.group_norm(x, 4, w, b, activation="silu"),
        lambda x, w, b: F.silu(F.group_norm(x, 4, w, b)),
    ),
    (
        lambda x, w, b: ours.instance_norm(x, weight=w, bias=b),
        lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
    ),
    (
        lambda x, w, b: ours.layer_norm(x, (7,), w[:7], b[:7]),
        lambda x, w, b: F.layer_norm(x, (7,), w[:7], b[:7]),
    ),
)
for mine, torchs in pairs:
    for found, expected in zip(gradients(mine, x, w, b), gradients(torchs, x, w, b)):
        near(found, expected)
    near(mine(x, w, b), torchs(x, w, b))
    near(torch.func.vmap(lambda x: mine(x[None], w, b))(x), torch.func.vmap(lambda x: torchs(x[None], w, b))(x))
    near(torch.func.jvp(lambda x: mine(x, w, b), (x,), (x.cos(),))[1],
         torch.func.jvp(lambda x: torchs(x, w, b), (x,), (x.cos(),))[1])
    compiled = torch.compile(lambda x: mine(x, w, b), backend="aot_eager")
    near(compiled(x), torchs(x, w, b))
last = x.contiguous(memory_format=torch.channels_last)
assert ours.group_norm(last, 4).is_contiguous(memory_format=torch.channels_last)
near(ours.group_norm(last, 4), F.group_norm(x, 4))
assert ours.group_norm(x.transpose(2, 3), 4).is_contiguous()
model = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3), torch.nn.GroupNorm(4, 8), torch.nn.SiLU())
expected = model(x)
gt.replace_group_norm_(model)
near(model(x), expected)
"""


@pytest.mark.filterwarnings("ignore")
def test_results_are_right_without_any_of_them():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_enable_says_what_an_older_torch_has_not():
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10):
        pytest.skip("this torch has all that enable needs")
    with pytest.raises(RuntimeError, match=r"needs torch 2\.10 or later.*; got torch 2\."):
        groupnorm.torch.enable()
    with pytest.raises(RuntimeError), groupnorm.torch.override():
        pass
    assert not groupnorm.torch.enabled()
    assert not groupnorm.torch.enabled(verbose=True)
    x = torch.randn(2, 8, 5)
    torch.testing.assert_close(
        groupnorm.torch.GroupNorm(4, 8)(x), torch.nn.functional.group_norm(x, 4)
    )
