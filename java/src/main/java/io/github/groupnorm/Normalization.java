package io.github.groupnorm;

import com.sun.jna.Memory;
import java.lang.ref.Reference;
import java.nio.ByteBuffer;
import java.nio.DoubleBuffer;
import java.nio.FloatBuffer;
import java.nio.ShortBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.function.Consumer;
import java.util.function.Function;

/**
 * What the layers share. They differ in which examples and channels share one mean and one
 * variance.
 *
 * <p>Every method may be called from any number of threads at once. A call takes the settings as
 * they are when it begins, all of them from the same moment.
 *
 * <p>A layer keeps the memory of its calls for the next ones, as many times as there were calls at
 * once: a workspace, mostly small beside a tensor. It holds on to no tensor.
 *
 * <p>The result has the same bits for any number of threads, for an example alone or in a batch,
 * and in place; and those of the engine's other interfaces (C, C++, Python) on the same machine.
 */
public abstract class Normalization {
  static final double DEFAULT_EPSILON = 1e-5;
  static final boolean CENTERED = true;
  static final boolean NOT_CENTERED = false;
  private static final long OVERWRITE = 0; // gn_backward_args.accumulate

  private final String name;
  private final Function<Engine.Shape, Engine.Block> blockOf;
  private final boolean center;
  private final double epsilon;
  private volatile Settings settings = new Settings();
  private volatile Plan lastPlan;
  private final Queue<Scratch> idle = new ConcurrentLinkedQueue<>();

  // `name`: the beginning of what toString() says.
  Normalization(
      String name, Function<Engine.Shape, Engine.Block> blockOf, boolean center, double epsilon) {
    this.name = name;
    this.blockOf = blockOf;
    this.center = center;
    this.epsilon = epsilon;
    check(settings);
  }

  // ---- Settings

  /**
   * Returns what is added to the variance.
   *
   * @return finite, at least 0
   */
  public double getEpsilon() {
    return epsilon;
  }

  /**
   * Returns what is applied to gamma * xhat + beta.
   *
   * @return {@link Activation#NONE} until it is set
   */
  public Activation getActivation() {
    return settings.activation;
  }

  /**
   * Sets what is applied to gamma * xhat + beta before the one store of y.
   *
   * @param activation one of the six
   */
  public void setActivation(Activation activation) {
    Objects.requireNonNull(activation, "activation");
    change(next -> next.activation = activation);
  }

  /**
   * Returns what is taken from the number of elements of a block before the variance divides by it.
   *
   * @return 0 until it is set
   */
  public int getCorrection() {
    return settings.correction;
  }

  /**
   * Sets what the variance divides by.
   *
   * @param correction 0 for the number of elements of a block, m; 1 for m - 1
   * @throws IllegalArgumentException for another number
   */
  public void setCorrection(int correction) {
    change(next -> next.correction = correction);
  }

  /**
   * Returns how many threads a call may use.
   *
   * @return 0, as many as the process may use, until it is set
   */
  public int getThreads() {
    return settings.threads;
  }

  /**
   * Sets how many threads a call may use. They belong to the engine, which shares them among all
   * layers. No bit of a result depends on their number.
   *
   * @param threads 1 for the calling thread alone, up to 1024; 0 for GROUPNORM_NUM_THREADS or,
   *     where that is not set, as many as the process may use
   * @throws IllegalArgumentException for a number below 0 or above 1024
   */
  public void setThreads(int threads) {
    if (threads < 0 || threads > Engine.MAX_THREADS) {
      throw new IllegalArgumentException(
          "threads: must be from 1 to " + Engine.MAX_THREADS + ", or 0; got " + threads);
    }
    change(next -> {
      next.threads = threads;
      next.executor = Engine.gn_pool(threads);
    });
  }

  /**
   * Returns gamma.
   *
   * @return a copy of what was set; null where it counts as 1
   */
  public double[] getGamma() {
    return values(settings.gamma);
  }

  /**
   * Sets gamma, which xhat is multiplied by.
   *
   * @param gamma one value a channel, used in double for f64 tensors and rounded to f32 for others;
   *     null for 1
   * @throws IllegalArgumentException for an empty array
   */
  public void setGamma(double[] gamma) {
    Settings.Parameter parameter = parameter("gamma", gamma);
    change(next -> next.gamma = parameter);
  }

  /**
   * Sets gamma, which xhat is multiplied by.
   *
   * @param gamma one value a channel
   * @throws IllegalArgumentException for an empty array
   */
  public void setGamma(float[] gamma) {
    setGamma(toDouble(gamma));
  }

  /**
   * Returns beta.
   *
   * @return a copy of what was set; null where it counts as 0
   */
  public double[] getBeta() {
    return values(settings.beta);
  }

  /**
   * Sets beta, which is added to gamma * xhat.
   *
   * @param beta one value a channel, used in double for f64 tensors and rounded to f32 for others;
   *     null for 0
   * @throws IllegalArgumentException for an empty array
   */
  public void setBeta(double[] beta) {
    Settings.Parameter parameter = parameter("beta", beta);
    change(next -> next.beta = parameter);
  }

  /**
   * Sets beta, which is added to gamma * xhat.
   *
   * @param beta one value a channel
   * @throws IllegalArgumentException for an empty array
   */
  public void setBeta(float[] beta) {
    setBeta(toDouble(beta));
  }

  private static double[] values(Settings.Parameter parameter) {
    return parameter == null ? null : parameter.values.clone();
  }

  private static double[] toDouble(float[] values) {
    double[] wide = new double[values.length];
    for (int i = 0; i < wide.length; ++i) {
      wide[i] = values[i];
    }
    return wide;
  }

  private static Settings.Parameter parameter(String name, double[] values) {
    if (values == null) {
      return null;
    }
    if (values.length == 0) {
      throw new IllegalArgumentException(name + ": must have one value a channel; got none");
    }
    return new Settings.Parameter(values);
  }

  private synchronized void change(Consumer<Settings> change) {
    Settings next = settings.clone();
    change.accept(next);
    check(next);
    settings = next;
  }

  // Refuses what no tensor could be normalized with.
  private void check(Settings settings) {
    new Plan(
        spec(1, 0, 1, Layout.CHANNELS_FIRST, DType.F32, settings, false), () -> words(settings));
  }

  private String words(Settings settings) {
    String words = name + "epsilon=" + epsilon;
    if (settings.activation != Activation.NONE) {
      words += ", activation=" + settings.activation;
    }
    if (settings.correction != 0) {
      words += ", correction=" + settings.correction;
    }
    return words + ")";
  }

  /**
   * Returns the layer and its settings in words.
   *
   * @return for example {@code GroupNormalization(numGroups=8, epsilon=1.0E-5, activation=SILU)}
   */
  @Override
  public String toString() {
    return words(settings);
  }

  // ---- Forward

  /**
   * Normalizes arrays [N][C][S], each row of which holds the positions of one channel.
   *
   * @param x N examples of C channels of S positions; it is not changed
   * @return y, new arrays of the same sizes
   * @throws IllegalArgumentException for arrays of different lengths, or that this layer cannot
   *     take
   */
  public float[][][] forward(float[][][] x) {
    return forwardArrays(x, Rows.OF_FLOATS);
  }

  /**
   * Normalizes arrays [N][C][S], each row of which holds the positions of one channel.
   *
   * @param x N examples of C channels of S positions; it is not changed
   * @return y, new arrays of the same sizes
   * @throws IllegalArgumentException for arrays of different lengths, or that this layer cannot
   *     take
   */
  public double[][][] forward(double[][][] x) {
    return forwardArrays(x, Rows.OF_DOUBLES);
  }

  /**
   * Normalizes a matrix [N][C], each row of which holds the channels of one example.
   *
   * @param x N rows of C columns; it is not changed
   * @return y, a new matrix of the same size
   * @throws IllegalArgumentException for rows of different lengths, or that this layer cannot take
   */
  public float[][] forward(float[][] x) {
    return forwardMatrix(x, Rows.OF_FLOATS);
  }

  /**
   * Normalizes a matrix [N][C], each row of which holds the channels of one example.
   *
   * @param x N rows of C columns; it is not changed
   * @return y, a new matrix of the same size
   * @throws IllegalArgumentException for rows of different lengths, or that this layer cannot take
   */
  public double[][] forward(double[][] x) {
    return forwardMatrix(x, Rows.OF_DOUBLES);
  }

  /**
   * Normalizes an array that holds [n, c, s] row by row, channels first.
   *
   * @param x n * c * s numbers; it is not changed
   * @param n examples
   * @param c channels
   * @param s positions: the product of the spatial sizes, 1 for [N, C]
   * @return y, a new array of the same length
   * @throws IllegalArgumentException for a negative size or another length, or for an x that this
   *     layer cannot take
   */
  public float[] forward(float[] x, int n, int c, int s) {
    return forwardArray(x, Rows.OF_FLOATS, n, c, s);
  }

  /**
   * Normalizes an array that holds [n, c, s] row by row, channels first.
   *
   * @param x n * c * s numbers; it is not changed
   * @param n examples
   * @param c channels
   * @param s positions: the product of the spatial sizes, 1 for [N, C]
   * @return y, a new array of the same length
   * @throws IllegalArgumentException for a negative size or another length, or for an x that this
   *     layer cannot take
   */
  public double[] forward(double[] x, int n, int c, int s) {
    return forwardArray(x, Rows.OF_DOUBLES, n, c, s);
  }

  /**
   * Normalizes f32 numbers [n, c, s], channels first, where they lie.
   *
   * @param x direct, in the native byte order, with n * c * s numbers from its position on
   * @param y as x, not read-only; x itself (in place), or memory that x has no part of
   * @param n examples
   * @param c channels
   * @param s positions: the product of the spatial sizes, 1 for [N, C]
   * @throws IllegalArgumentException for a negative size, or buffers that are not so; y has not
   *     been written then
   */
  public void forward(FloatBuffer x, FloatBuffer y, int n, int c, int s) {
    forward(Tensor.of("x", x, n, c, s), Tensor.of("y", y, n, c, s));
  }

  /**
   * Normalizes f64 numbers [n, c, s], channels first, where they lie.
   *
   * @param x direct, in the native byte order, with n * c * s numbers from its position on
   * @param y as x, not read-only; x itself (in place), or memory that x has no part of
   * @param n examples
   * @param c channels
   * @param s positions: the product of the spatial sizes, 1 for [N, C]
   * @throws IllegalArgumentException for a negative size, or buffers that are not so; y has not
   *     been written then
   */
  public void forward(DoubleBuffer x, DoubleBuffer y, int n, int c, int s) {
    forward(Tensor.of("x", x, n, c, s), Tensor.of("y", y, n, c, s));
  }

  /**
   * Normalizes f16 numbers [n, c, s] (IEEE 754 binary16), channels first, where they lie. bf16 goes
   * by {@link Tensor#of(DType, ShortBuffer, int...)}.
   *
   * @param x direct, in the native byte order, with the bits of n * c * s numbers from its position
   *     on
   * @param y as x, not read-only; x itself (in place), or memory that x has no part of
   * @param n examples
   * @param c channels
   * @param s positions: the product of the spatial sizes, 1 for [N, C]
   * @throws IllegalArgumentException for a negative size, or buffers that are not so; y has not
   *     been written then
   */
  public void forward(ShortBuffer x, ShortBuffer y, int n, int c, int s) {
    forward(Tensor.of("x", DType.F16, x, n, c, s), Tensor.of("y", DType.F16, y, n, c, s));
  }

  /**
   * Normalizes x into a new tensor.
   *
   * @param x the tensor
   * @return y, with the shape, dtype and layout of x
   * @throws IllegalArgumentException for an x that this layer cannot take
   */
  public Tensor forward(Tensor x) {
    Tensor y = x.zerosLike();
    forward(x, y);
    return y;
  }

  /**
   * Normalizes x into y.
   *
   * @param x the tensor
   * @param y with the shape, dtype and layout of x, not read-only; the memory of x itself (in
   *     place), or memory that x has no part of
   * @throws IllegalArgumentException for tensors that are not so, or that this layer cannot take
   */
  public void forward(Tensor x, Tensor y) {
    forward(x, y, null, false);
  }

  /**
   * Normalizes x into y and returns the statistics, as backward needs them.
   *
   * @param x the tensor
   * @param y as for {@link #forward(Tensor, Tensor)}
   * @return mean and rstd of each block
   * @throws IllegalArgumentException as forward does
   */
  public Statistics forwardWithStatistics(Tensor x, Tensor y) {
    return forward(x, y, null, true);
  }

  /**
   * Normalizes x into y by statistics that are given, such as the running ones of batch
   * normalization at inference.
   *
   * @param x the tensor
   * @param y as for {@link #forward(Tensor, Tensor)}
   * @param statistics mean and rstd of each block
   * @throws IllegalArgumentException as forward does, or for statistics of another number of blocks
   */
  public void apply(Tensor x, Tensor y, Statistics statistics) {
    forward(x, y, Objects.requireNonNull(statistics, "statistics"), false);
  }

  private Statistics forward(Tensor x, Tensor y, Statistics given, boolean wanted) {
    checkOutput("y", y, x);
    Settings now = settings;
    Plan plan = plan(x, now, given != null);
    Scratch scratch = borrow();
    try {
      Direct memory = null;
      if (given != null) {
        memory = write(given, plan.blocks, scratch);
      } else if (wanted) {
        memory = scratch.statistics(plan.blocks);
      }
      long mean = memory == null ? 0 : memory.address;
      long rstd = memory == null ? 0 : mean + plan.blocks * Double.BYTES;
      int status = Engine.gn_forward(plan.pointer,
          scratch.forward(x.address(), y.address(), address("gamma", now.gamma, x),
              address("beta", now.beta, x), wanted ? mean : 0, wanted ? rstd : 0,
              given != null ? mean : 0, given != null ? rstd : 0),
          scratch.workspace(plan.workspaceBytes.longValue()), plan.workspaceBytes,
          now.executor.getPointer());
      Plan.check(status, () -> call(now, x));
      return wanted ? read(memory, (int) plan.blocks) : null;
    } finally {
      keepAlive(plan, now, x, y);
      idle.add(scratch);
    }
  }

  // ---- Backward

  /**
   * Differentiates a forward call with the same settings. With L the loss, dx = dL/dx.
   *
   * @param x that of forward, unchanged
   * @param dy dL/dy, with the shape, dtype and layout of x
   * @param dx with the shape, dtype and layout of x, not read-only; the memory of dy itself (in
   *     place), or memory that x and dy have no part of; null where it is not needed
   * @param statistics what {@link #forwardWithStatistics} returned
   * @return dL/dgamma and dL/dbeta of this call
   * @throws IllegalArgumentException for tensors that are not so, or statistics of another number
   *     of blocks; dx has not been written then
   */
  public Gradients backward(Tensor x, Tensor dy, Tensor dx, Statistics statistics) {
    return backward(x, dy, dx, statistics, false);
  }

  /**
   * Differentiates a call of {@link #apply}, which takes the statistics as constants.
   *
   * @param x that of apply, unchanged
   * @param dy dL/dy, with the shape, dtype and layout of x
   * @param dx as for {@link #backward}
   * @param statistics those of apply
   * @return dL/dgamma and dL/dbeta of this call
   * @throws IllegalArgumentException as backward does
   */
  public Gradients applyBackward(Tensor x, Tensor dy, Tensor dx, Statistics statistics) {
    return backward(x, dy, dx, statistics, true);
  }

  private Gradients backward(Tensor x, Tensor dy, Tensor dx, Statistics statistics, boolean given) {
    checkLike("dy", dy, x);
    if (dx != null) {
      checkOutput("dx", dx, x);
    }
    Settings now = settings;
    Plan plan = plan(x, now, given);
    Scratch scratch = borrow();
    try {
      long mean = write(statistics, plan.blocks, scratch).address;
      int channels = x.channels();
      boolean wide = x.dtype() == DType.F64;
      long bytes = (long) channels * (wide ? Double.BYTES : Float.BYTES); // of one of the two
      Direct gradients = scratch.gradients(bytes);
      int status = Engine.gn_backward(plan.pointer,
          scratch.backward(x.address(), dy.address(), address("gamma", now.gamma, x),
              address("beta", now.beta, x), mean, mean + plan.blocks * Double.BYTES, OVERWRITE,
              dx == null ? 0 : dx.address(), gradients.address, gradients.address + bytes),
          scratch.workspace(plan.backwardWorkspaceBytes.longValue()), plan.backwardWorkspaceBytes,
          now.executor.getPointer());
      Plan.check(status, () -> call(now, x));
      int behind = (int) bytes;
      return wide
          ? new Gradients(gradients.doubles(0, channels), gradients.doubles(behind, channels))
          : new Gradients(gradients.floats(0, channels), gradients.floats(behind, channels));
    } finally {
      keepAlive(plan, now, x, dy, dx);
      idle.add(scratch);
    }
  }

  // ---- What calls share

  private Engine.Spec spec(
      long n, long c, long s, Layout layout, DType dtype, Settings now, boolean given) {
    Engine.Spec spec = new Engine.Spec();
    spec.struct_size.setValue(spec.size());
    spec.shape.n = n;
    spec.shape.c = c;
    spec.shape.s = s;
    spec.block = blockOf.apply(spec.shape);
    spec.layout = layout.ordinal();
    spec.data = dtype.ordinal();
    spec.param = (dtype == DType.F64 ? DType.F64 : DType.F32).ordinal();
    spec.activation = now.activation.ordinal();
    spec.center = center ? 1 : 0;
    spec.given_statistics = given ? 1 : 0;
    spec.correction = now.correction;
    spec.eps = epsilon;
    return spec;
  }

  // That of the last call where it fits; threads that differ in it make theirs in turn.
  private Plan plan(Tensor x, Settings now, boolean given) {
    Plan plan = lastPlan;
    if (plan == null || !plan.fits(x, now, given)) {
      Engine.Spec spec =
          spec(x.examples(), x.channels(), x.positions(), x.layout(), x.dtype(), now, given);
      plan = new Plan(spec, () -> call(now, x));
      lastPlan = plan;
    }
    return plan;
  }

  private Scratch borrow() {
    Scratch scratch = idle.poll();
    return scratch != null ? scratch : new Scratch();
  }

  // The collector must not take the memory behind an address while the engine works on it.
  private static void keepAlive(Plan plan, Settings settings, Tensor... tensors) {
    Reference.reachabilityFence(plan);
    Reference.reachabilityFence(settings);
    for (Tensor tensor : tensors) {
      Reference.reachabilityFence(tensor);
    }
  }

  private String call(Settings now, Tensor x) {
    return words(now) + " of x " + x;
  }

  private static void checkLike(String name, Tensor other, Tensor x) {
    Objects.requireNonNull(x, "x");
    if (!Objects.requireNonNull(other, name).isLike(x)) {
      throw new IllegalArgumentException(name + ": must have x's shape, dtype and layout; x is " + x
          + ", " + name + " is " + other);
    }
  }

  private static void checkOutput(String name, Tensor output, Tensor x) {
    checkLike(name, output, x);
    if (output.isReadOnly()) {
      throw new IllegalArgumentException(
          name + ": must be writable; got a read-only buffer of " + output);
    }
  }

  private static long address(String name, Settings.Parameter parameter, Tensor x) {
    if (parameter == null) {
      return 0;
    }
    if (parameter.values.length != x.channels()) {
      throw new IllegalArgumentException(
          name + ": must have one value a channel; got " + parameter.values.length + ", x is " + x);
    }
    return parameter.address(x.dtype());
  }

  private static Direct write(Statistics statistics, long blocks, Scratch scratch) {
    if (statistics.mean.length != blocks) {
      throw new IllegalArgumentException(
          "statistics: must be of " + blocks + " blocks; got " + statistics.mean.length);
    }
    Direct memory = scratch.statistics(blocks);
    memory.putDoubles(0, statistics.mean);
    memory.putDoubles((int) blocks * Double.BYTES, statistics.rstd);
    return memory;
  }

  private static Statistics read(Direct memory, int blocks) {
    return new Statistics(memory.doubles(0, blocks), memory.doubles(blocks * Double.BYTES, blocks));
  }

  // ---- Arrays: the rows go to memory side by side, are normalized there, and come back

  private <R> R[][] forwardArrays(R[][] x, Rows<R> kind) {
    int channels = x.length == 0 ? 0 : x[0].length;
    int positions = channels == 0 ? 0 : kind.length(x[0][0]);
    R[][] y = x.clone();
    List<R> rows = new ArrayList<>();
    for (int n = 0; n < y.length; ++n) {
      String name = "x[" + n + "]";
      checkLength(name, x[n].length, channels);
      y[n] = copy(name, x[n], positions, kind);
      rows.addAll(Arrays.asList(y[n]));
    }
    replace(rows, kind, x.length, channels, positions);
    return y;
  }

  private <R> R[] forwardMatrix(R[] x, Rows<R> kind) {
    int channels = x.length == 0 ? 0 : kind.length(x[0]);
    R[] y = copy("x", x, channels, kind);
    replace(Arrays.asList(y), kind, x.length, channels, 1);
    return y;
  }

  private <R> R forwardArray(R x, Rows<R> kind, int... shape) {
    R y = kind.copy(x);
    long elements = Tensor.elements(shape);
    if (kind.length(y) != elements) {
      throw new IllegalArgumentException("x: must have " + elements + " numbers for the shape "
          + Arrays.toString(shape) + "; got " + kind.length(y));
    }
    replace(List.of(y), kind, shape);
    return y;
  }

  private static <R> R[] copy(String name, R[] rows, int length, Rows<R> kind) {
    R[] copies = rows.clone();
    for (int i = 0; i < copies.length; ++i) {
      checkLength(name + "[" + i + "]", kind.length(rows[i]), length);
      copies[i] = kind.copy(rows[i]);
    }
    return copies;
  }

  private static void checkLength(String name, int length, int first) {
    if (length != first) {
      throw new IllegalArgumentException(
          name + ": must be as long as the first, " + first + "; got " + length);
    }
  }

  private <R> void replace(List<R> rows, Rows<R> kind, int... shape) {
    long elements = rows.isEmpty() ? 0 : (long) rows.size() * kind.length(rows.get(0));
    long bytes = elements * kind.elementBytes();
    if (bytes > Integer.MAX_VALUE) {
      throw new IllegalArgumentException(
          "x: must have less than 2^31 bytes as arrays; got " + Arrays.toString(shape));
    }
    // Released at once, not when the collector finds it: it is as large as x.
    try (Memory memory = new Memory(Math.max(bytes, 1))) {
      ByteBuffer view = memory.getByteBuffer(0, bytes);
      Tensor tensor = kind.tensor(view, shape);
      kind.put(rows, view);
      forward(tensor, tensor);
      kind.get(rows, view);
    }
  }
}
