package io.github.groupnorm;

/**
 * Group normalization: the channels of each example in groups of equal size (Wu &amp; He,
 * arXiv:1803.08494).
 */
public final class GroupNormalization extends Normalization {
  private final int numGroups;

  /**
   * Makes a layer with an epsilon of 1e-5.
   *
   * @param numGroups the number of groups, at least 1; must divide the channels of every x
   * @throws IllegalArgumentException for fewer than one group
   */
  public GroupNormalization(int numGroups) {
    this(numGroups, DEFAULT_EPSILON);
  }

  /**
   * Makes a layer.
   *
   * @param numGroups the number of groups, at least 1; must divide the channels of every x
   * @param epsilon what is added to the variance; its exact value counts, and that of {@code 1e-5f}
   *     is 2.5e-8 below that of {@code 1e-5}, in parts
   * @throws IllegalArgumentException for fewer than one group, or an epsilon that is negative, NaN
   *     or infinite
   */
  public GroupNormalization(int numGroups, float epsilon) {
    this(numGroups, (double) epsilon);
  }

  /**
   * Makes a layer.
   *
   * @param numGroups the number of groups, at least 1; must divide the channels of every x
   * @param epsilon what is added to the variance
   * @throws IllegalArgumentException for fewer than one group, or an epsilon that is negative, NaN
   *     or infinite
   */
  public GroupNormalization(int numGroups, double epsilon) {
    super("GroupNormalization(numGroups=" + numGroups + ", ",
        shape -> Engine.gn_group_norm(shape, numGroups), CENTERED, epsilon);
    this.numGroups = numGroups;
  }

  /**
   * Returns the number of groups.
   *
   * @return at least 1
   */
  public int getNumGroups() {
    return numGroups;
  }
}
