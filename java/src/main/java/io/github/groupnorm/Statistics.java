package io.github.groupnorm;

/**
 * The means and the reciprocal standard deviations of a tensor's blocks: [n / examples, c /
 * channels] of a block. They are held in double, since a mean that was rounded to f32 would cost
 * the gradients digits.
 */
public final class Statistics {
  final double[] mean;
  final double[] rstd;

  /**
   * Takes copies of both.
   *
   * @param mean one a block
   * @param rstd 1 / sqrt(variance + epsilon), one a block
   * @throws IllegalArgumentException where the lengths differ
   */
  public Statistics(double[] mean, double[] rstd) {
    checkOneEach("rstd", mean, rstd);
    this.mean = mean.clone();
    this.rstd = rstd.clone();
  }

  /**
   * Makes statistics of means and variances, such as a model's running ones.
   *
   * @param mean one a block
   * @param variance one a block
   * @param epsilon what is added to a variance
   * @return the statistics
   * @throws IllegalArgumentException where the lengths differ
   */
  public static Statistics ofVariance(double[] mean, double[] variance, double epsilon) {
    checkOneEach("variance", mean, variance);
    double[] rstd = new double[variance.length];
    for (int block = 0; block < rstd.length; ++block) {
      double spread = variance[block] + epsilon;
      rstd[block] = spread == 0 ? 0 : 1 / Math.sqrt(spread); // as for a block of equal numbers
    }
    return new Statistics(mean, rstd);
  }

  private static void checkOneEach(String name, double[] mean, double[] values) {
    if (values.length != mean.length) {
      throw new IllegalArgumentException(
          name + ": must have a value for each of " + mean.length + " means; got " + values.length);
    }
  }

  /**
   * Returns the means.
   *
   * @return a copy
   */
  public double[] mean() {
    return mean.clone();
  }

  /**
   * Returns the reciprocal standard deviations, 1 / sqrt(variance + epsilon).
   *
   * @return a copy
   */
  public double[] rstd() {
    return rstd.clone();
  }

  /**
   * Returns the variances, which running statistics are made of.
   *
   * @param epsilon that of the layer
   * @return 1 / rstd^2 - epsilon, at least 0
   */
  public double[] variance(double epsilon) {
    double[] variance = new double[rstd.length];
    for (int block = 0; block < variance.length; ++block) {
      double r = rstd[block];
      variance[block] = r == 0 ? 0 : Math.max(0, 1 / (r * r) - epsilon);
    }
    return variance;
  }
}
