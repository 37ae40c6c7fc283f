// The engine as two functions that XLA calls, for JAX on the CPU.
#ifndef GROUPNORM_PYTHON_SRC_XLA_H
#define GROUPNORM_PYTHON_SRC_XLA_H

namespace groupnorm::python::xla {

struct CallFrame;
struct Error;
using Handler = Error*(CallFrame*);

// Attributes of both: layout, activation (their names), channels (of a block, int64), eps
// (float64), center, scale, bias (bool; the last two: whether there is that operand).
//
// Operands of forward: x [n, c, s] or, channels_last, [n, s, c]; scale and bias, [c] or [n, c]
// each. Results: y as x; and where there are two more, mean and rstd, [n, c / channels, 2] of
// uint32: the bytes of a double each, a dtype that JAX has on request alone.
Error* forward(CallFrame* frame) noexcept;

// Operands: x, dy, scale and bias, mean and rstd, as above. Attributes besides: dx, dscale, dbias
// (bool): whether that is a result. Results: those, dx as x, dscale and dbias as scale or bias.
Error* backward(CallFrame* frame) noexcept;

}  // namespace groupnorm::python::xla

#endif
