package io.github.groupnorm;

/** The derivatives of a loss by the parameters of a layer, of one call of backward. */
public final class Gradients {
  private final double[] gamma;
  private final double[] beta;

  Gradients(double[] gamma, double[] beta) {
    this.gamma = gamma;
    this.beta = beta;
  }

  /**
   * Returns dL/dgamma, in the precision that gamma is used in.
   *
   * @return one value a channel, also of a layer without gamma (which counts as 1)
   */
  public double[] gamma() {
    return gamma.clone();
  }

  /**
   * Returns dL/dbeta, in the precision that beta is used in.
   *
   * @return one value a channel, also of a layer without beta (which counts as 0)
   */
  public double[] beta() {
    return beta.clone();
  }
}
