package io.github.groupnorm;

/**
 * Batch normalization: each channel over all examples (Ioffe &amp; Szegedy, arXiv:1502.03167).
 *
 * <p>forward normalizes by the batch's own statistics, as in training. Running statistics are the
 * caller's: {@link Normalization#forwardWithStatistics} gives those of a batch, and {@link
 * Normalization#apply} takes those of a model at inference.
 */
public final class BatchNormalization extends Normalization {
  /** Makes a layer with an epsilon of 1e-5. */
  public BatchNormalization() {
    this(DEFAULT_EPSILON);
  }

  /**
   * Makes a layer.
   *
   * @param epsilon what is added to the variance
   * @throws IllegalArgumentException for an epsilon that is negative, NaN or infinite
   */
  public BatchNormalization(double epsilon) {
    super("BatchNormalization(", Engine::gn_batch_norm, CENTERED, epsilon);
  }
}
