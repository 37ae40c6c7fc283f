import io.github.groupnorm.DType;
import io.github.groupnorm.Layout;
import io.github.groupnorm.Tensor;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.DoubleBuffer;
import java.nio.FloatBuffer;
import java.nio.ShortBuffer;
import java.util.Random;
import java.util.function.IntPredicate;
import java.util.stream.IntStream;

/** What the tests make of tensors: data, numbers and bits. */
final class Tensors {
  private Tensors() {}

  /** Direct, in the native order. */
  static FloatBuffer floats(int count) {
    return ByteBuffer.allocateDirect(4 * count).order(ByteOrder.nativeOrder()).asFloatBuffer();
  }

  static FloatBuffer normalFloats(long seed, int count) {
    FloatBuffer floats = floats(count);
    Random random = new Random(seed);
    for (int i = 0; i < count; ++i) {
      floats.put(i, (float) random.nextGaussian());
    }
    return floats;
  }

  static Tensor normal(
      long seed, double mean, double deviation, DType dtype, Layout layout, int... shape) {
    Tensor tensor = Tensor.zeros(dtype, shape).withLayout(layout);
    Random random = new Random(seed);
    for (int i = 0; i < tensor.size(); ++i) {
      set(tensor, i, mean + deviation * random.nextGaussian());
    }
    return tensor;
  }

  static void set(Tensor tensor, int i, double value) {
    switch (tensor.dtype()) {
      case F32:
        tensor.floats().put(i, (float) value);
        break;
      case F64:
        tensor.doubles().put(i, value);
        break;
      default:
        tensor.shorts().put(i, Plain.toHalf(tensor.dtype(), value));
    }
  }

  static double get(Tensor tensor, int i) {
    switch (tensor.dtype()) {
      case F32:
        return tensor.floats().get(i);
      case F64:
        return tensor.doubles().get(i);
      default:
        return Plain.fromHalf(tensor.dtype(), tensor.shorts().get(i));
    }
  }

  /** The numbers in the order in which they lie in memory. */
  static double[] numbers(Tensor tensor) {
    double[] numbers = new double[tensor.size()];
    for (int i = 0; i < numbers.length; ++i) {
      numbers[i] = get(tensor, i);
    }
    return numbers;
  }

  /** The first element with other bits, -1 where there is none. */
  static int firstDifference(Tensor a, Tensor b) {
    switch (a.dtype()) {
      case F32:
        FloatBuffer floats = a.floats();
        FloatBuffer otherFloats = b.floats();
        return first(a.size(),
            i
            -> Float.floatToRawIntBits(floats.get(i))
                != Float.floatToRawIntBits(otherFloats.get(i)));
      case F64:
        DoubleBuffer doubles = a.doubles();
        DoubleBuffer otherDoubles = b.doubles();
        return first(a.size(),
            i
            -> Double.doubleToRawLongBits(doubles.get(i))
                != Double.doubleToRawLongBits(otherDoubles.get(i)));
      default:
        ShortBuffer shorts = a.shorts();
        ShortBuffer otherShorts = b.shorts();
        return first(a.size(), i -> shorts.get(i) != otherShorts.get(i));
    }
  }

  private static int first(int size, IntPredicate differs) {
    return IntStream.range(0, size).filter(differs).findFirst().orElse(-1);
  }
}
