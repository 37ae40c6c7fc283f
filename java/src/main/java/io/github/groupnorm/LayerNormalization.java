package io.github.groupnorm;

/**
 * Layer normalization: all channels and positions of an example (Ba et al., arXiv:1607.06450). Over
 * the last axis of [rows, features], x is {@code Tensor.of(buffer, rows, features)}.
 */
public final class LayerNormalization extends Normalization {
  /** Makes a layer with an epsilon of 1e-5. */
  public LayerNormalization() {
    this(DEFAULT_EPSILON);
  }

  /**
   * Makes a layer.
   *
   * @param epsilon what is added to the variance
   * @throws IllegalArgumentException for an epsilon that is negative, NaN or infinite
   */
  public LayerNormalization(double epsilon) {
    super("LayerNormalization(", Engine::gn_layer_norm, CENTERED, epsilon);
  }
}
