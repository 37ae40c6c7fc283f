package io.github.groupnorm;

import com.sun.jna.Native;
import com.sun.jna.Pointer;
import java.nio.Buffer;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.DoubleBuffer;
import java.nio.FloatBuffer;
import java.nio.ShortBuffer;
import java.util.Arrays;
import java.util.Objects;

/**
 * A tensor [N, C, spatial...] of any rank from 2, contiguous, in a direct buffer that it shares
 * with whoever made it. The shape is given in this order whatever the layout.
 *
 * <p>A tensor is immutable but for its numbers, and keeps its buffer alive. It takes the numbers
 * from the buffer's position on, as it is when the tensor is made; position and limit of the buffer
 * are neither changed nor looked at later.
 */
public final class Tensor {
  private final DType dtype;
  private final Layout layout;
  private final int[] shape;
  private final Buffer numbers; // from the first to the last
  private final long address;

  private Tensor(DType dtype, Layout layout, int[] shape, Buffer numbers) {
    this.dtype = dtype;
    this.layout = layout;
    this.shape = shape;
    this.numbers = numbers;
    this.address = Pointer.nativeValue(Native.getDirectBufferPointer(numbers));
  }

  /**
   * Takes f32 numbers where they lie, channels first.
   *
   * @param buffer direct, in the native byte order, with the numbers from its position on
   * @param shape N, C and any spatial sizes
   * @return the tensor
   * @throws IllegalArgumentException for a shape of a rank below 2 or with a negative size, or a
   *     buffer that is not direct, in the other byte order, or too small
   */
  public static Tensor of(FloatBuffer buffer, int... shape) {
    return of("buffer", buffer, shape);
  }

  /**
   * Takes f64 numbers where they lie, channels first.
   *
   * @param buffer direct, in the native byte order, with the numbers from its position on
   * @param shape N, C and any spatial sizes
   * @return the tensor
   * @throws IllegalArgumentException as for a FloatBuffer
   */
  public static Tensor of(DoubleBuffer buffer, int... shape) {
    return of("buffer", buffer, shape);
  }

  /**
   * Takes the bits of f16 or bf16 numbers where they lie, channels first.
   *
   * @param dtype {@link DType#F16} or {@link DType#BF16}
   * @param buffer direct, in the native byte order, with the numbers from its position on
   * @param shape N, C and any spatial sizes
   * @return the tensor
   * @throws IllegalArgumentException as for a FloatBuffer, or for another dtype
   */
  public static Tensor of(DType dtype, ShortBuffer buffer, int... shape) {
    return of("buffer", dtype, buffer, shape);
  }

  static Tensor of(String name, FloatBuffer buffer, int... shape) {
    int size = check(name, buffer, buffer.order(), shape);
    return new Tensor(DType.F32, Layout.CHANNELS_FIRST, shape.clone(), window(buffer, size));
  }

  static Tensor of(String name, DoubleBuffer buffer, int... shape) {
    int size = check(name, buffer, buffer.order(), shape);
    return new Tensor(DType.F64, Layout.CHANNELS_FIRST, shape.clone(), window(buffer, size));
  }

  static Tensor of(String name, DType dtype, ShortBuffer buffer, int... shape) {
    if (dtype.bytes() != Short.BYTES) {
      throw new IllegalArgumentException("dtype: must be F16 or BF16 of shorts; got " + dtype);
    }
    int size = check(name, buffer, buffer.order(), shape);
    return new Tensor(dtype, Layout.CHANNELS_FIRST, shape.clone(), window(buffer, size));
  }

  /**
   * Makes a tensor of zeros with memory of its own, channels first.
   *
   * @param dtype of its numbers
   * @param shape N, C and any spatial sizes
   * @return the tensor
   * @throws IllegalArgumentException for a shape of a rank below 2 or with a negative size, or of
   *     2^31 bytes and more, which no buffer can hold
   */
  public static Tensor zeros(DType dtype, int... shape) {
    long bytes = Math.multiplyExact(elements(shape), (long) dtype.bytes());
    if (bytes > Integer.MAX_VALUE) {
      throw new IllegalArgumentException("shape: a buffer holds less than 2^31 bytes; got "
          + Arrays.toString(shape) + " " + dtype);
    }
    ByteBuffer memory = ByteBuffer.allocateDirect((int) bytes).order(ByteOrder.nativeOrder());
    switch (dtype) {
      case F32:
        return of(memory.asFloatBuffer(), shape);
      case F64:
        return of(memory.asDoubleBuffer(), shape);
      default:
        return of(dtype, memory.asShortBuffer(), shape);
    }
  }

  /**
   * Makes a tensor of zeros with the shape, dtype and layout of this one and memory of its own.
   *
   * @return the new tensor
   */
  public Tensor zerosLike() {
    return zeros(dtype, shape).withLayout(layout);
  }

  /**
   * Returns the same numbers in the same memory, read in another layout.
   *
   * @param layout how the memory is to be read; the shape stays in the order N, C, spatial
   * @return a tensor that shares the memory of this one
   */
  public Tensor withLayout(Layout layout) {
    return new Tensor(dtype, Objects.requireNonNull(layout, "layout"), shape, numbers);
  }

  // The elements of a shape, or why it is none.
  static long elements(int[] shape) {
    if (shape.length < 2) {
      throw new IllegalArgumentException(
          "shape: must be [N, C, spatial...], of rank 2 or more; got " + Arrays.toString(shape));
    }
    long elements = 1;
    boolean empty = false;
    for (int size : shape) {
      if (size < 0) {
        throw new IllegalArgumentException(
            "shape: no size may be negative; got " + Arrays.toString(shape));
      }
      empty |= size == 0;
      int factor = Math.max(size, 1); // an empty axis hides nothing
      if (elements > Long.MAX_VALUE / Double.BYTES / factor) { // bytes of every dtype fit
        throw new IllegalArgumentException(
            "shape: the elements must stay below 2^60; got " + Arrays.toString(shape));
      }
      elements *= factor;
    }
    return empty ? 0 : elements;
  }

  private static int check(String name, Buffer buffer, ByteOrder order, int[] shape) {
    long size = elements(shape);
    String rule = null;
    if (!buffer.isDirect()) {
      rule = "must be direct (ByteBuffer.allocateDirect), so that the engine can reach its memory";
    } else if (order != ByteOrder.nativeOrder()) {
      rule = "must be in the native byte order (order(ByteOrder.nativeOrder()) of the ByteBuffer), "
          + ByteOrder.nativeOrder() + ", not " + order;
    } else if (buffer.remaining() < size) {
      rule = "must have " + size + " numbers from its position on, for the shape "
          + Arrays.toString(shape);
    }
    if (rule != null) {
      throw new IllegalArgumentException(name + ": " + rule + "; got " + buffer);
    }
    return (int) size;
  }

  private static Buffer window(FloatBuffer buffer, int size) {
    return buffer.duplicate().limit(buffer.position() + size).slice();
  }

  private static Buffer window(DoubleBuffer buffer, int size) {
    return buffer.duplicate().limit(buffer.position() + size).slice();
  }

  private static Buffer window(ShortBuffer buffer, int size) {
    return buffer.duplicate().limit(buffer.position() + size).slice();
  }

  /**
   * Returns what the numbers are.
   *
   * @return the dtype
   */
  public DType dtype() {
    return dtype;
  }

  /**
   * Returns how they lie in memory.
   *
   * @return the layout
   */
  public Layout layout() {
    return layout;
  }

  /**
   * Returns the sizes in the order N, C, spatial, whatever the layout.
   *
   * @return a copy
   */
  public int[] shape() {
    return shape.clone();
  }

  /**
   * Returns the number of elements.
   *
   * @return the product of the shape
   */
  public int size() {
    return numbers.capacity();
  }

  /**
   * Returns the numbers of an f32 tensor in the order in which they lie in memory.
   *
   * @return a view of the same memory, from position 0
   * @throws IllegalStateException for another dtype
   */
  public FloatBuffer floats() {
    return ((FloatBuffer) require(numbers instanceof FloatBuffer, "floats")).duplicate();
  }

  /**
   * Returns the numbers of an f64 tensor in the order in which they lie in memory.
   *
   * @return a view of the same memory, from position 0
   * @throws IllegalStateException for another dtype
   */
  public DoubleBuffer doubles() {
    return ((DoubleBuffer) require(numbers instanceof DoubleBuffer, "doubles")).duplicate();
  }

  /**
   * Returns the bits of the numbers of an f16 or bf16 tensor in the order in which they lie in
   * memory.
   *
   * @return a view of the same memory, from position 0
   * @throws IllegalStateException for another dtype
   */
  public ShortBuffer shorts() {
    return ((ShortBuffer) require(numbers instanceof ShortBuffer, "shorts")).duplicate();
  }

  private Buffer require(boolean holds, String accessor) {
    if (!holds) {
      throw new IllegalStateException(accessor + "(): is not what " + this + " holds");
    }
    return numbers;
  }

  boolean isLike(Tensor other) {
    return dtype == other.dtype && layout == other.layout && Arrays.equals(shape, other.shape);
  }

  boolean isReadOnly() {
    return numbers.isReadOnly();
  }

  long address() {
    return address;
  }

  int examples() {
    return shape[0];
  }

  int channels() {
    return shape[1];
  }

  long positions() {
    long positions = 1;
    for (int axis = 2; axis < shape.length; ++axis) {
      positions *= shape[axis];
    }
    return positions;
  }

  /**
   * Returns shape, dtype and layout in words.
   *
   * @return for example {@code [2, 320, 64, 64] F32 CHANNELS_FIRST}
   */
  @Override
  public String toString() {
    return Arrays.toString(shape) + " " + dtype + " " + layout;
  }
}
