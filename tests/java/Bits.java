import io.github.groupnorm.Activation;
import io.github.groupnorm.DType;
import io.github.groupnorm.Gradients;
import io.github.groupnorm.GroupNormalization;
import io.github.groupnorm.Layout;
import io.github.groupnorm.Statistics;
import io.github.groupnorm.Tensor;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;

/**
 * What test_java.py compares with the NumPy call. Of each line of FOLDER/cases, {@code name groups
 * dtype layout activation correction n c s}, it reads name.x, name.dy, name.gamma and name.beta (of
 * doubles) and writes name.y, name.dx and, of doubles, name.mean, name.rstd, name.dgamma,
 * name.dbeta.
 */
final class Bits {
  private Bits() {}

  public static void main(String[] arguments) throws IOException {
    Path folder = Path.of(arguments[0]);
    for (String line : Files.readAllLines(folder.resolve("cases"))) {
      String[] words = line.split(" ");
      int[] shape = {
          Integer.parseInt(words[6]), Integer.parseInt(words[7]), Integer.parseInt(words[8])};
      GroupNormalization norm = new GroupNormalization(Integer.parseInt(words[1]), 1e-5);
      norm.setActivation(Activation.valueOf(words[4]));
      norm.setCorrection(Integer.parseInt(words[5]));
      norm.setGamma(doubles(folder.resolve(words[0] + ".gamma")));
      norm.setBeta(doubles(folder.resolve(words[0] + ".beta")));
      Tensor x = tensor(folder.resolve(words[0] + ".x"), words, shape);
      Tensor dy = tensor(folder.resolve(words[0] + ".dy"), words, shape);
      Tensor y = x.zerosLike();
      Tensor dx = x.zerosLike();
      Statistics statistics = norm.forwardWithStatistics(x, y);
      Gradients gradients = norm.backward(x, dy, dx, statistics);
      write(folder.resolve(words[0] + ".y"), y);
      write(folder.resolve(words[0] + ".dx"), dx);
      write(folder.resolve(words[0] + ".mean"), statistics.mean());
      write(folder.resolve(words[0] + ".rstd"), statistics.rstd());
      write(folder.resolve(words[0] + ".dgamma"), gradients.gamma());
      write(folder.resolve(words[0] + ".dbeta"), gradients.beta());
    }
  }

  private static ByteBuffer read(Path path) throws IOException {
    byte[] bytes = Files.readAllBytes(path);
    ByteBuffer direct = ByteBuffer.allocateDirect(bytes.length).order(ByteOrder.nativeOrder());
    direct.put(bytes).rewind();
    return direct;
  }

  private static double[] doubles(Path path) throws IOException {
    double[] values = new double[(int) Files.size(path) / Double.BYTES];
    read(path).asDoubleBuffer().get(values);
    return values;
  }

  private static Tensor tensor(Path path, String[] words, int[] shape) throws IOException {
    ByteBuffer bytes = read(path);
    DType dtype = DType.valueOf(words[2]);
    Tensor tensor = dtype == DType.F32 ? Tensor.of(bytes.asFloatBuffer(), shape)
        : dtype == DType.F64           ? Tensor.of(bytes.asDoubleBuffer(), shape)
                                       : Tensor.of(dtype, bytes.asShortBuffer(), shape);
    return tensor.withLayout(Layout.valueOf(words[3]));
  }

  private static void write(Path path, Tensor tensor) throws IOException {
    ByteBuffer bytes = ByteBuffer.allocate(tensor.size() * tensor.dtype().bytes());
    bytes.order(ByteOrder.nativeOrder());
    switch (tensor.dtype()) {
      case F32:
        bytes.asFloatBuffer().put(tensor.floats());
        break;
      case F64:
        bytes.asDoubleBuffer().put(tensor.doubles());
        break;
      default:
        bytes.asShortBuffer().put(tensor.shorts());
    }
    Files.write(path, bytes.array());
  }

  private static void write(Path path, double[] values) throws IOException {
    ByteBuffer bytes = ByteBuffer.allocate(values.length * Double.BYTES);
    bytes.order(ByteOrder.nativeOrder()).asDoubleBuffer().put(values);
    Files.write(path, bytes.array());
  }
}
