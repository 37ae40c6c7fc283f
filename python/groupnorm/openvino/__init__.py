"""The engine in OpenVINO, on CPUs: an operator, and models that use it.

    import groupnorm.openvino, openvino
    core = openvino.Core()
    model = core.read_model("model.onnx")
    report = groupnorm.openvino.optimize(model)
    compiled = core.compile_model(model, "CPU")

Models with the operator can be saved. Whoever reads them calls core.add_extension(GroupNorm) first.
"""

try:
    import openvino
except ImportError as error:
    raise ImportError(f"{error}: pip install groupnorm[openvino]") from error

from ._version import check_version

check_version(openvino.get_version())  # before what an older one does not have

from ._operator import GroupNorm
from ._optimize import optimize
from ._report import Left, Replaced, Report

__all__ = ["GroupNorm", "Left", "Replaced", "Report", "optimize"]
