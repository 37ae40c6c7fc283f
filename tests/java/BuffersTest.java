import static org.junit.jupiter.api.Assertions.assertAll;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.github.groupnorm.DType;
import io.github.groupnorm.GroupNormalization;
import io.github.groupnorm.Layout;
import io.github.groupnorm.Statistics;
import io.github.groupnorm.Tensor;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.DoubleBuffer;
import java.nio.FloatBuffer;
import java.nio.ShortBuffer;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;

/** Direct buffers: where numbers lie, and what is refused before anything is written. */
final class BuffersTest {
  private static final int N = 2;
  private static final int C = 8;
  private static final int S = 16;
  private static final int SIZE = N * C * S;

  private final GroupNormalization norm = new GroupNormalization(4);
  private final FloatBuffer x = Tensors.normalFloats(1, SIZE);
  private final FloatBuffer y = Tensors.floats(SIZE);

  private static void assertRefused(String words, Executable call) {
    String message = assertThrows(IllegalArgumentException.class, call).getMessage();
    assertTrue(message.contains(words), () -> "'" + message + "' does not say '" + words + "'");
  }

  // Refused, in these words, with y as it was.
  private void assertRefused(String words, FloatBuffer from, FloatBuffer to, int n, int c, int s) {
    for (int i = 0; i < y.capacity(); ++i) {
      y.put(i, 42);
    }
    FloatBuffer before = to.duplicate();
    assertRefused(words, () -> norm.forward(from, to, n, c, s));
    assertEquals(before.position(), to.position());
    assertEquals(before.limit(), to.limit());
    for (int i = 0; i < y.capacity(); ++i) {
      assertEquals(42, y.get(i));
    }
  }

  @Test
  void takesNumbersFromThePositionOn() {
    norm.forward(x, y, N, C, S);
    FloatBuffer wideX = Tensors.floats(SIZE + 10);
    FloatBuffer wideY = Tensors.floats(SIZE + 10);
    wideX.position(3);
    wideX.duplicate().put(x.duplicate());
    wideY.position(5);
    norm.forward(wideX, wideY, N, C, S);
    assertEquals(3, wideX.position());
    assertEquals(5, wideY.position());
    for (int i = 0; i < wideY.capacity(); ++i) {
      boolean inside = i >= 5 && i < 5 + SIZE;
      assertEquals(inside ? y.get(i - 5) : 0, wideY.get(i), "element " + i);
    }
    assertEquals(wideY.slice().limit(SIZE), y);
  }

  @Test
  void inPlaceGivesTheSameBits() {
    norm.forward(x, y, N, C, S);
    norm.forward(x, x, N, C, S);
    assertEquals(y, x);
  }

  @Test
  void otherTypesAreNormalizedInTheirPrecision() {
    DoubleBuffer x64 = Tensor.zeros(DType.F64, N, C, S).doubles();
    ShortBuffer x16 = Tensor.zeros(DType.F16, N, C, S).shorts();
    for (int i = 0; i < SIZE; ++i) {
      x64.put(i, x.get(i));
      x16.put(i, Plain.toHalf(DType.F16, x.get(i)));
    }
    norm.forward(x, y, N, C, S);
    norm.forward(x64, x64, N, C, S);
    norm.forward(x16, x16, N, C, S);
    for (int i = 0; i < SIZE; ++i) {
      assertEquals(x64.get(i), y.get(i), 4e-7 * (1 + Math.abs(x64.get(i))), "element " + i);
      // x was truncated to 11 bits, and y rounded to them.
      assertEquals(x64.get(i), Plain.fromHalf(DType.F16, x16.get(i)), 0.01, "element " + i);
    }
  }

  @Test
  void refusesBuffersOfTheWrongKind() {
    assertAll(()
                  -> assertRefused("x: must be direct", FloatBuffer.allocate(SIZE), y, N, C, S),
        ()
            -> assertRefused("y: must be direct", x, FloatBuffer.allocate(SIZE), N, C, S),
        () -> assertRefused("y: must be direct", x, FloatBuffer.wrap(new float[SIZE]), N, C, S));
    ByteBuffer bytes = ByteBuffer.allocateDirect(4 * SIZE);
    assertEquals(ByteOrder.BIG_ENDIAN, bytes.order());
    if (ByteOrder.nativeOrder() == ByteOrder.LITTLE_ENDIAN) {
      assertRefused("x: must be in the native byte order", bytes.asFloatBuffer(), y, N, C, S);
      assertRefused("y: must be in the native byte order", x, bytes.asFloatBuffer(), N, C, S);
      assertRefused("BIG_ENDIAN",
          () -> norm.forward(bytes.asDoubleBuffer(), bytes.asDoubleBuffer(), 1, 4, 4));
      assertRefused(
          "BIG_ENDIAN", () -> norm.forward(bytes.asShortBuffer(), bytes.asShortBuffer(), 1, 4, 4));
    }
    assertRefused("y: must be writable", x, y.asReadOnlyBuffer(), N, C, S);
    norm.forward(x.asReadOnlyBuffer(), y, N, C, S); // x is only read
  }

  @Test
  void refusesBuffersThatAreTooSmall() {
    assertRefused("x: must have 288 numbers", x, y, N, C, S + 2);
    assertRefused("y: must have 256 numbers", x, Tensors.floats(SIZE - 1), N, C, S);
    FloatBuffer late = Tensors.floats(SIZE);
    late.position(1);
    assertRefused("x: must have 256 numbers from its position on", late, y, N, C, S);
    FloatBuffer limited = Tensors.floats(SIZE);
    limited.limit(SIZE - 1);
    assertRefused("x: must have 256 numbers", limited, y, N, C, S);
    int huge = Integer.MAX_VALUE;
    assertRefused("shape: the elements must stay below 2^60", x, y, huge, huge, huge);
    assertRefused("x: must have 576460752303423488 numbers", x, y, 1 << 30, 1 << 29, 1);
  }

  @Test
  void refusesShapes() {
    assertRefused("shape: no size may be negative; got [-2, 8, 16]", x, y, -2, C, S);
    assertRefused("shape: no size may be negative; got [2, 8, -1]", x, y, N, C, -1);
    assertRefused("groups: must be at least 1 and divide the channels", x, y, N, 6, S);
    assertRefused("x [2, 6, 16] F32 CHANNELS_FIRST", x, y, N, 6, S);
    assertRefused("rank 2 or more; got [256]", () -> Tensor.of(x, SIZE));
    assertRefused("rank 2 or more; got []", () -> Tensor.zeros(DType.F32));
    assertRefused("less than 2^31 bytes", () -> Tensor.zeros(DType.F64, 1, 1 << 28));
    assertRefused("dtype: must be F16 or BF16", () -> Tensor.of(DType.F32, null, 1, 1));
  }

  @Test
  void refusesOverlap() {
    FloatBuffer memory = Tensors.floats(SIZE + 4);
    FloatBuffer shifted = memory.duplicate();
    shifted.position(4);
    assertRefused("y: must not overlap another argument", memory, shifted, N, C, S);
    assertRefused("y: must not overlap another argument", shifted, memory, N, C, S);

    Tensor a = Tensor.of(memory, N, C, S);
    Tensor b = Tensor.of(shifted, N, C, S);
    Statistics statistics = norm.forwardWithStatistics(a, Tensor.of(y, N, C, S));
    assertRefused(
        "dx: must not overlap", () -> norm.backward(a, Tensor.of(y, N, C, S), b, statistics));
    assertRefused(
        "dx: must not overlap", () -> norm.backward(a, Tensor.of(y, N, C, S), a, statistics));
    norm.backward(a, Tensor.of(y, N, C, S), Tensor.of(y, N, C, S), statistics); // dx is dy
  }

  @Test
  void refusesMisalignedMemory() {
    ByteBuffer bytes = ByteBuffer.allocateDirect(4 * SIZE + 4).order(ByteOrder.nativeOrder());
    bytes.position(2);
    FloatBuffer misaligned = bytes.slice().order(ByteOrder.nativeOrder()).asFloatBuffer();
    assertRefused("x: must be aligned", misaligned, y, N, C, S);
    assertRefused("y: must be aligned", x, misaligned, N, C, S);
  }

  @Test
  void refusesTensorsThatAreNotAlike() {
    Tensor from = Tensor.of(x, N, C, S);
    assertAll(()
                  -> assertRefused(
                      "y: must have x's shape", () -> norm.forward(from, Tensor.of(y, N, S, C))),
        ()
            -> assertRefused("y is [2, 8, 16] F32 CHANNELS_LAST",
                () -> norm.forward(from, Tensor.of(y, N, C, S).withLayout(Layout.CHANNELS_LAST))),
        ()
            -> assertRefused(
                "y is [2, 8, 16] F64", () -> norm.forward(from, Tensor.zeros(DType.F64, N, C, S))));
    Statistics statistics = norm.forwardWithStatistics(from, Tensor.of(y, N, C, S));
    assertRefused("dy: must have x's shape",
        () -> norm.backward(from, Tensor.of(y, N, S, C), null, statistics));
    assertRefused("dx: must be writable",
        () -> norm.backward(from, from, Tensor.of(y.asReadOnlyBuffer(), N, C, S), statistics));
    assertRefused("statistics: must be of 8 blocks; got 2",
        () -> norm.apply(from, from, new Statistics(new double[2], new double[2])));
    assertRefused("rstd: must have a value for each of 2 means; got 3",
        () -> new Statistics(new double[2], new double[3]));
  }

  @Test
  void refusesNull() {
    Tensor from = Tensor.of(x, N, C, S);
    assertAll(()
                  -> assertThrows(NullPointerException.class,
                      () -> norm.forward((FloatBuffer) null, y, N, C, S)),
        ()
            -> assertThrows(NullPointerException.class, () -> norm.forward(x, null, N, C, S)),
        ()
            -> assertThrows(NullPointerException.class, () -> norm.forward((Tensor) null)),
        ()
            -> assertThrows(NullPointerException.class, () -> norm.forward(from, null)),
        ()
            -> assertThrows(NullPointerException.class, () -> norm.apply(from, from, null)),
        ()
            -> assertThrows(
                NullPointerException.class, () -> norm.backward(from, from, null, null)),
        ()
            -> assertThrows(NullPointerException.class, () -> from.withLayout(null)),
        () -> assertThrows(NullPointerException.class, () -> norm.setActivation(null)));
  }

  @Test
  void anEmptyTensorIsNothingToDo() {
    for (int[] shape : new int[][] {{0, 8, 4}, {2, 0, 4}, {2, 8, 0}, {0, 0}}) {
      Tensor empty = Tensor.zeros(DType.F32, shape);
      assertEquals(0, norm.forward(empty).size());
      Statistics statistics = norm.forwardWithStatistics(empty, empty.zerosLike());
      for (double sum : norm.backward(empty, empty, null, statistics).gamma()) {
        assertEquals(0, sum);
      }
    }
  }

  @Test
  void aTensorIsAViewOfItsBuffer() {
    Tensor tensor = Tensor.of(x, N, C, 4, 4);
    x.put(0, 7);
    assertEquals(7, tensor.floats().get(0));
    assertEquals(SIZE, tensor.size());
    assertEquals("[2, 8, 4, 4] F32 CHANNELS_FIRST", tensor.toString());
    tensor.shape()[0] = 5;
    assertEquals(N, tensor.shape()[0]);
    assertThrows(IllegalStateException.class, tensor::doubles);
    assertThrows(IllegalStateException.class, tensor::shorts);
  }
}
