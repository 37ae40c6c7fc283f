package io.github.groupnorm;

/**
 * RMS normalization: as layer normalization, but not centred, x / sqrt(mean(x^2) + epsilon) (Zhang
 * &amp; Sennrich, arXiv:1910.07467).
 */
public final class RmsNormalization extends Normalization {
  /** Makes a layer with an epsilon of 1e-5. */
  public RmsNormalization() {
    this(DEFAULT_EPSILON);
  }

  /**
   * Makes a layer.
   *
   * @param epsilon what is added to the mean square
   * @throws IllegalArgumentException for an epsilon that is negative, NaN or infinite
   */
  public RmsNormalization(double epsilon) {
    super("RmsNormalization(", Engine::gn_layer_norm, NOT_CENTERED, epsilon);
  }
}
