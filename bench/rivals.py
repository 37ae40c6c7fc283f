"""Who else computes group normalization on a CPU: one function each, in the table `RIVALS`.

Some are ours, beside whom they are in their framework.

Each makes a `Rival` of a `Job`, in the fastest way that its library offers to who has the tensors
in memory: no copy goes in, and where the library lets its caller say so, none comes out. It raises
`Absent` where the library does not do the job, and ImportError where it is not installed.
"""

import dataclasses
import functools
import os
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from groupnorm._cli.contest import Case, Rival, Setting


class Absent(Exception):
    """Why a library does not play."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A case to be computed; gamma and beta [C] are torch's, of the case's dtype."""

    case: Case
    setting: Setting
    gamma: torch.Tensor
    beta: torch.Tensor

    def numpy_params(self) -> tuple[Any, Any]:
        return self.gamma.detach().numpy(), self.beta.detach().numpy()


def _require(job: Job, **allowed: tuple[object, ...]) -> None:
    for name, values in allowed.items():
        if (value := getattr(job.setting, name)) not in values:
            raise Absent(f"no {value}" if name != "backward" else "inference alone")


_INFERENCE: dict[str, tuple[object, ...]] = {
    "layout": ("channels_first",),
    "backward": (False,),
    "activation": ("none", "silu"),
}


def onnxruntime(job: Job) -> Rival:
    """ONNX's GroupNormalization: its function body, fused as ONNX Runtime sees fit."""
    import onnx
    import onnxruntime as ort
    from onnx import helper

    _require(job, **_INFERENCE, dtype=("f32", "f16"))
    element = {
        "f32": onnx.TensorProto.FLOAT,
        "f16": onnx.TensorProto.FLOAT16,
    }[job.setting.dtype]
    gamma, beta = job.numpy_params()
    groups, eps = job.case.groups, job.setting.eps
    silu = job.setting.activation == "silu"
    nodes = [
        helper.make_node(
            "GroupNormalization",
            ["x", "gamma", "beta"],
            ["z" if silu else "y"],
            num_groups=groups,
            epsilon=eps,
        )
    ]
    if silu:
        nodes += [
            helper.make_node("Sigmoid", ["z"], ["s"]),
            helper.make_node("Mul", ["z", "s"], ["y"]),
        ]
    ends = [helper.make_tensor_value_info(name, element, job.case.shape) for name in ("x", "y")]
    constants = [
        onnx.numpy_helper.from_array(gamma, "gamma"),
        onnx.numpy_helper.from_array(beta, "beta"),
    ]
    graph = helper.make_graph(nodes, "group_norm", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = job.setting.threads
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def view(x: torch.Tensor) -> tuple[Any, torch.Tensor]:
        binding, y = session.io_binding(), torch.empty_like(x)
        binding.bind_input("x", "cpu", 0, x.numpy().dtype, x.shape, x.data_ptr())
        binding.bind_output("y", "cpu", 0, y.numpy().dtype, y.shape, y.data_ptr())
        return binding, y

    def call(bound: tuple[Any, torch.Tensor]) -> torch.Tensor:
        session.run_with_iobinding(bound[0])
        return bound[1]

    return Rival(view, call, lambda y: y)


def openvino(job: Job) -> Rival:
    """OpenVINO's operation GroupNormalization-12 on its CPU plugin."""
    import openvino as ov
    from openvino import opset14 as ops

    _require(job, **_INFERENCE, dtype=("f32",))
    gamma, beta = job.numpy_params()
    x = ops.parameter(job.case.shape, ov.Type.f32)
    y = ops.group_normalization(
        *(x, ops.constant(gamma), ops.constant(beta), job.case.groups, job.setting.eps)
    )
    if job.setting.activation == "silu":
        y = ops.swish(y)
    hints = {
        "INFERENCE_NUM_THREADS": job.setting.threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = ov.Core().compile_model(ov.Model([y], [x]), "CPU", hints).create_infer_request()

    def view(x: torch.Tensor) -> tuple[Any, Any, torch.Tensor]:
        y = torch.empty_like(x)
        shared = (ov.Tensor(each.numpy(), shared_memory=True) for each in (x, y))
        return *shared, y

    def call(bound: tuple[Any, Any, torch.Tensor]) -> torch.Tensor:
        request.set_input_tensor(bound[0])
        request.set_output_tensor(bound[1])
        request.infer()
        return bound[2]

    return Rival(view, call, lambda y: y)


def ncnn(job: Job) -> Rival:
    """ncnn's layer GroupNorm, an example after another: ncnn has no batch."""
    import ncnn as nn

    _require(job, **_INFERENCE, dtype=("f32",))
    _, c, *space = job.case.shape
    if len(space) > 3:
        raise Absent("no more than 3 spatial sizes")
    net = nn.Net()
    net.opt.num_threads = job.setting.threads
    net.opt.use_vulkan_compute = False
    net.opt.use_bf16_storage = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    layers = [f"GroupNorm norm 1 1 x y 0={job.case.groups} 1={c} 2={job.setting.eps} 3=1"]
    if job.setting.activation == "silu":
        layers = [layers[0].replace(" x y ", " x z "), "Swish swish 1 1 z y"]
    lines = ["7767517", f"{len(layers) + 1} {len(layers) + 1}", "Input input 0 1 x", *layers]
    net.load_param_mem("\n".join(lines) + "\n")
    with tempfile.NamedTemporaryFile() as weights:
        weights.write(b"".join(param.tobytes() for param in job.numpy_params()))
        weights.flush()
        net.load_model(weights.name)

    def view(x: torch.Tensor) -> list[Any]:
        return [nn.Mat(example).clone() for example in x.numpy()]  # without, it crashes

    def call(examples: list[Any]) -> list[Any]:
        results = []
        for example in examples:
            extractor = net.create_extractor()
            extractor.input("x", example)
            results.append(extractor.extract("y")[1])
        return results

    def result(found: list[Any]) -> torch.Tensor:
        return torch.from_numpy(np.stack([np.array(y) for y in found])).view(job.case.shape)

    return Rival(view, call, result)


# y of x, gamma and beta, which are arrays of JAX.
_InJax = Callable[[Any, Any, Any], Any]


def _in_jax(job: Job, norm: _InJax) -> Rival:
    """`norm`, compiled by XLA; its gradient by jax.vjp."""
    import jax as j
    from jax import numpy as jnp

    last = job.setting.layout == "channels_last"

    def array(tensor: torch.Tensor) -> Any:
        plain = tensor.detach()
        return jnp.from_dlpack(plain.movedim(1, -1) if last else plain)

    def both(x: Any, dy: Any, gamma: Any, beta: Any) -> Any:
        return j.vjp(norm, x, gamma, beta)[1](dy)

    gamma, beta = (jnp.from_dlpack(param.detach()) for param in (job.gamma, job.beta))

    def tensor(array: Any) -> torch.Tensor:
        found = torch.from_dlpack(array)
        return found.movedim(-1, 1) if last and found.ndim > 1 else found

    if job.setting.backward:
        gradient = j.jit(both)
        return Rival(
            lambda tensors: tuple(map(array, tensors)),
            lambda arrays: j.block_until_ready(gradient(*arrays, gamma, beta)),
            lambda found: tuple(map(tensor, found)),
        )
    forward = j.jit(norm)
    return Rival(array, lambda x: forward(x, gamma, beta).block_until_ready(), tensor)


def jax(job: Job) -> Rival:
    """The definition in jax.numpy."""
    import jax as j
    from jax import numpy as jnp

    _require(job, activation=("none", "silu"))
    n, c, *space = job.case.shape
    groups, eps = job.case.groups, job.setting.eps
    last = job.setting.layout == "channels_last"

    def norm(x: Any, gamma: Any, beta: Any) -> Any:
        if last:
            blocks, axes = x.reshape(n, -1, groups, c // groups), (1, 3)
        else:
            blocks, axes = x.reshape(n, groups, c // groups, -1), (2, 3)
            gamma, beta = (param.reshape(c, *[1] * len(space)) for param in (gamma, beta))
        blocks = blocks.astype(jnp.float32)
        centred = blocks - blocks.mean(axes, keepdims=True)
        xhat = centred * j.lax.rsqrt((centred**2).mean(axes, keepdims=True) + eps)
        z = (xhat.reshape(x.shape) * gamma + beta).astype(x.dtype)
        return j.nn.silu(z) if job.setting.activation == "silu" else z

    return _in_jax(job, norm)


def ours_in_jax(job: Job) -> Rival:
    """groupnorm.jax."""
    from groupnorm.jax import group_norm

    options: dict[str, Any] = {
        "epsilon": job.setting.eps,
        "axis": -1 if job.setting.layout == "channels_last" else 1,
        "activation": job.setting.activation,
    }
    return _in_jax(
        job, lambda x, gamma, beta: group_norm(x, job.case.groups, gamma, beta, **options)
    )


def _in_keras(job: Job, kind: Callable[..., Any], activate: Callable[[Any], Any]) -> Rival:
    """A layer of Keras, on JAX."""
    last = job.setting.layout == "channels_last"
    n, c, *space = job.case.shape
    layer = kind(job.case.groups, axis=-1 if last else 1, epsilon=job.setting.eps)
    layer.build((n, *space, c) if last else job.case.shape)
    return _in_jax(
        job, lambda x, gamma, beta: activate(layer.stateless_call([gamma, beta], [], x)[0])
    )


def keras(job: Job) -> Rival:
    """keras.layers.GroupNormalization."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras as k

    _require(job, activation=("none", "silu"), dtype=("f32",))
    silu = job.setting.activation == "silu"
    activate = k.activations.silu if silu else k.activations.linear
    return _in_keras(job, k.layers.GroupNormalization, activate)


def ours_in_keras(job: Job) -> Rival:
    """groupnorm.keras."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    from groupnorm.keras import GroupNormalization

    _require(job, activation=("none", "silu"), dtype=("f32",))
    activation = "silu" if job.setting.activation == "silu" else None
    kind = functools.partial(GroupNormalization, activation=activation)
    return _in_keras(job, kind, lambda y: y)


def mlx(job: Job) -> Rival:
    """mlx.nn.GroupNorm with PyTorch's groups, compiled by mlx."""
    import mlx.core as mx
    from mlx import nn

    _require(job, layout=("channels_last",), backward=(False,), dtype=("f32",))
    _require(job, activation=("none", "silu"))
    norm = nn.GroupNorm(
        job.case.groups, job.case.shape[1], eps=job.setting.eps, pytorch_compatible=True
    )
    norm.weight, norm.bias = (mx.array(param) for param in job.numpy_params())
    activate = nn.silu if job.setting.activation == "silu" else lambda z: z
    forward = mx.compile(lambda x: activate(norm(x)))

    def call(x: Any) -> Any:
        y = forward(x)
        mx.eval(y)
        return y

    return Rival(
        lambda x: mx.array(x.movedim(1, -1).numpy()),
        call,
        lambda y: torch.from_numpy(np.array(y)).movedim(-1, 1),
    )


def onednn(job: Job) -> Rival:
    """Its primitive of group normalization: not to be had from Python."""
    raise Absent(
        "Debian's 2.6 has no group normalization, PyPI's build needs 2 GB of SYCL and OpenCL, and "
        "torch keeps its own to itself"
    )


RIVALS: dict[str, Callable[[Job], Rival]] = {
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "ncnn": ncnn,
    "jax": jax,
    "ours-jax": ours_in_jax,
    "keras": keras,
    "ours-keras": ours_in_keras,
    "mlx": mlx,
    "onednn": onednn,
}
