"""Bodies of standard operators, which a runtime takes where it does not know ours."""

import onnx

DOMAIN = "ai.groupnorm"

_GROUPED = """
  zero = Constant <value_ints: ints = [0]> ()
  one = Constant <value_ints: ints = [1]> ()
  rest = Constant <value_ints: ints = [-1]> ()
  groups = Constant <value_int: int = @num_groups> ()
  g = Reshape (groups, rest)
  by_group = Concat <axis = 0> (zero, g, rest)
  grouped = Reshape (X, by_group)
"""
# What torch exports. ONNX Runtime has it in float32 alone, and there it is the faster one.
_BY_INSTANCE_NORMALIZATION = """
  f1 = Constant <value_float: float = 1.0> ()
  f0 = Constant <value_float: float = 0.0> ()
  x1 = CastLike (f1, X)
  x0 = CastLike (f0, X)
  ones = Expand (x1, g)
  zeros = Expand (x0, g)
  normalized = InstanceNormalization <epsilon: float = @epsilon> (grouped, ones, zeros)
"""
_BY_MEANS = """
  mean = {mean_of} (grouped{axes})
  centred = Sub (grouped, mean)
  squares = Mul (centred, centred)
  var = {mean_of} (squares{axes})
  eps = Constant <value_float: float = @epsilon> ()
  eps_x = CastLike (eps, X)
  var_eps = Add (var, eps_x)
  deviation = Sqrt (var_eps)
  normalized = Div (centred, deviation)
"""
_SCALED = """
  shape = Shape (X)
  c = Shape (scale)
  by_channel = Concat <axis = 0> (zero, c, rest)
  channels = Reshape (normalized, by_channel)
  scale_x = CastLike (scale, X)
  bias_x = CastLike (bias, X)
  scale_1 = Unsqueeze (scale_x, one)
  bias_1 = Unsqueeze (bias_x, one)
  scaled = Mul (channels, scale_1)
  z = Add (scaled, bias_1)
"""


def _numbers(**values: float) -> str:
    lines = (
        f"  double_{name} = Constant <value = double {{{value!r}}}> ()\n"
        f"  {name} = CastLike (double_{name}, X)\n"
        for name, value in values.items()
    )
    return "".join(lines)


_HALF = """
  sum = Add (odd, number_1)
  half = Mul (z, number_05)
  a = Mul (half, sum)
"""
_ACTIVATIONS = {
    "": "  a = Identity (z)\n",
    "Relu": "  a = Relu (z)\n",
    "Silu": "  s = Sigmoid (z)\n  a = Mul (z, s)\n",
    "Gelu": _numbers(number_1=1.0, number_05=0.5, root=0.7071067811865476)
    + "  inner = Mul (z, root)\n  odd = Erf (inner)\n"
    + _HALF,
    "GeluTanh": _numbers(number_1=1.0, number_05=0.5, k=0.7978845608028654, cubic=0.044715)
    + "  zz = Mul (z, z)\n  zzz = Mul (zz, z)\n  part = Mul (zzz, cubic)\n"
    + "  poly = Add (z, part)\n  inner = Mul (poly, k)\n  odd = Tanh (inner)\n"
    + _HALF,
    "HardSwish": _numbers(three=3.0, six=6.0, nought=0.0)
    + "  shifted = Add (z, three)\n  clipped = Clip (shifted, nought, six)\n"
    + "  product = Mul (z, clipped)\n  a = Div (product, six)\n",
}


def fallback(activation: str, opset: int, by_means: bool) -> onnx.FunctionProto:
    """GroupNorm + activation as a function; by_means: in any dtype."""
    norm = _BY_INSTANCE_NORMALIZATION
    if by_means:
        before, behind = ("ReduceMean <axes = [2]>", ""), ("ReduceMean", ", two")
        mean_of, axes = before if opset < 18 else behind
        norm = "  two = Constant <value_ints: ints = [2]> ()\n" if axes else ""
        norm += _BY_MEANS.format(mean_of=mean_of, axes=axes)
    body = _GROUPED + norm + _SCALED + _ACTIVATIONS[activation] + "  Y = Reshape (a, shape)\n"
    return onnx.parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>\n'
        f"GroupNorm{activation} <num_groups, epsilon> (X, scale, bias) => (Y)\n{{{body}}}"
    )
