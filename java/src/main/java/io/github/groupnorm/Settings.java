package io.github.groupnorm;

/** What a layer can be told. A call reads all of it at once; a change makes another one. */
final class Settings implements Cloneable {
  Activation activation = Activation.NONE;
  int correction = 0;
  int threads = 0;
  Engine.Executor executor = Engine.gn_pool(threads);
  Parameter gamma;
  Parameter beta;

  @Override
  protected Settings clone() {
    try {
      return (Settings) super.clone();
    } catch (CloneNotSupportedException impossible) {
      throw new AssertionError(impossible);
    }
  }

  /** gamma or beta, one value a channel, in both precisions that the engine reads them in. */
  static final class Parameter {
    final double[] values;
    private final Direct f32;
    private final Direct f64;

    Parameter(double[] values) {
      this.values = values.clone();
      f32 = new Direct((long) Float.BYTES * values.length);
      f32.putFloats(0, values);
      f64 = new Direct((long) Double.BYTES * values.length);
      f64.putDoubles(0, values);
    }

    /** The address of the values beside data of `dtype`. */
    long address(DType dtype) {
      return (dtype == DType.F64 ? f64 : f32).address;
    }
  }
}
