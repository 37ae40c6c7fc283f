package io.github.groupnorm;

/**
 * Instance normalization: each channel of each example (Ulyanov et al., arXiv:1607.08022).
 */
public final class InstanceNormalization extends Normalization {
  /** Makes a layer with an epsilon of 1e-5. */
  public InstanceNormalization() {
    this(DEFAULT_EPSILON);
  }

  /**
   * Makes a layer.
   *
   * @param epsilon what is added to the variance
   * @throws IllegalArgumentException for an epsilon that is negative, NaN or infinite
   */
  public InstanceNormalization(double epsilon) {
    super("InstanceNormalization(", Engine::gn_instance_norm, CENTERED, epsilon);
  }
}
