package io.github.groupnorm;

/**
 * Groups of channels over all examples ("groups of examples"; Zhou et al., arXiv:2012.02782). Of a
 * matrix [rows, columns] these are groups of columns, each over all rows.
 */
public final class BatchGroupNormalization extends Normalization {
  private final int numGroups;

  /**
   * Makes a layer with an epsilon of 1e-5.
   *
   * @param numGroups the number of groups, at least 1; must divide the channels of every x
   * @throws IllegalArgumentException for fewer than one group
   */
  public BatchGroupNormalization(int numGroups) {
    this(numGroups, DEFAULT_EPSILON);
  }

  /**
   * Makes a layer.
   *
   * @param numGroups the number of groups, at least 1; must divide the channels of every x
   * @param epsilon what is added to the variance
   * @throws IllegalArgumentException for fewer than one group, or an epsilon that is negative, NaN
   *     or infinite
   */
  public BatchGroupNormalization(int numGroups, double epsilon) {
    super("BatchGroupNormalization(numGroups=" + numGroups + ", ",
        shape -> Engine.gn_batch_group_norm(shape, numGroups), CENTERED, epsilon);
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
