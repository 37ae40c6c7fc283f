package io.github.groupnorm;

/** What is applied to gamma * xhat + beta before the one store of y. The order is that of C. */
public enum Activation {
  /** z. */
  NONE,
  /** max(z, 0). */
  RELU,
  /** z / (1 + exp(-z)), also called swish. */
  SILU,
  /** z (1 + erf(z / sqrt(2))) / 2: the exact form. */
  GELU,
  /** z (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) / 2. */
  GELU_TANH,
  /** z min(max(z + 3, 0), 6) / 6. */
  HARD_SWISH
}
