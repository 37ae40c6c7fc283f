package io.github.groupnorm;

/** What the numbers of a tensor are. The order is that of C. */
public enum DType {
  /** IEEE 754 binary32, in a FloatBuffer. */
  F32(4),
  /** IEEE 754 binary64, in a DoubleBuffer. */
  F64(8),
  /** IEEE 754 binary16, as bits in a ShortBuffer. */
  F16(2),
  /** bfloat16, the upper half of a binary32, as bits in a ShortBuffer. */
  BF16(2);

  private final int bytes;

  DType(int bytes) {
    this.bytes = bytes;
  }

  /**
   * Returns the size of one number.
   *
   * @return bytes
   */
  public int bytes() {
    return bytes;
  }
}
