import io.github.groupnorm.Activation;
import io.github.groupnorm.DType;
import io.github.groupnorm.Layout;
import java.util.function.IntToDoubleFunction;
import java.util.function.IntUnaryOperator;
import java.util.stream.IntStream;

/**
 * The definition in plain double loops, forward and backward, and how far a result may be from it.
 * Sums are compensated (DoubleStream.sum), so that they are good to the last places of double.
 *
 * <p>The units of the errors are those of docs/numerics.md and src/testing/cases.cpp.
 */
final class Plain {
  // What is normalized.
  int n;
  int c;
  int s;
  Layout layout = Layout.CHANNELS_FIRST;
  int examples; // of a block
  int channels; // of a block
  boolean center = true;
  boolean given = false;
  int correction = 0;
  double epsilon;
  Activation activation = Activation.NONE;
  double[] gamma; // may be null
  double[] beta; // may be null
  double[] x;

  // By statistics() or by the caller.
  double[] mean;
  double[] rstd;

  // By forward(): y, and what one unit of its error is in eps.
  double[] y;
  double[] scale;

  // By backward(): and what one unit of their errors is in eps.
  double[] dx;
  double[] dxScale;
  double[] dgamma;
  double[] dgammaScale;
  double[] dbeta;
  double[] dbetaScale;

  private int blocks() {
    return n / examples * (c / channels);
  }

  private int example(int i) {
    return i / (c * s);
  }

  private int channel(int i) {
    return layout == Layout.CHANNELS_FIRST ? i / s % c : i % c;
  }

  private int block(int i) {
    return example(i) / examples * (c / channels) + channel(i) / channels;
  }

  private int[][] elements(int parts, IntUnaryOperator part) {
    int[] counts = new int[parts];
    IntStream.range(0, x.length).forEach(i -> ++counts[part.applyAsInt(i)]);
    int[][] elements = IntStream.of(counts).mapToObj(int[] ::new).toArray(int[][] ::new);
    IntStream.iterate(x.length - 1, i -> i >= 0, i -> i - 1)
        .forEach(i -> elements[part.applyAsInt(i)][--counts[part.applyAsInt(i)]] = i);
    return elements;
  }

  private static double sum(int[] elements, IntToDoubleFunction term) {
    return IntStream.of(elements).mapToDouble(term).sum();
  }

  private double gamma(int i) {
    return gamma == null ? 1 : gamma[channel(i)];
  }

  private double beta(int i) {
    return beta == null ? 0 : beta[channel(i)];
  }

  private double xhat(int i) {
    return (x[i] - (center ? mean[block(i)] : 0)) * rstd[block(i)];
  }

  private double z(int i) {
    return gamma(i) * xhat(i) + beta(i);
  }

  void statistics() {
    int[][] blocks = elements(blocks(), this::block);
    mean = new double[blocks.length];
    rstd = new double[blocks.length];
    for (int b = 0; b < blocks.length; ++b) {
      int[] block = blocks[b];
      double m = block.length;
      // A first mean, then the mean of the deviations from it.
      double first = center ? sum(block, i -> x[i]) / m : 0;
      double shift = center ? sum(block, i -> x[i] - first) / m : 0;
      double squares = sum(block, i -> (x[i] - first) * (x[i] - first)) - m * shift * shift;
      double spread = Math.max(0, squares) / (m - correction) + epsilon;
      mean[b] = first + shift;
      rstd[b] = spread == 0 ? 0 : 1 / Math.sqrt(spread);
    }
  }

  void forward() {
    y = new double[x.length];
    scale = new double[x.length];
    for (int i = 0; i < x.length; ++i) {
      y[i] = apply(activation, z(i));
      scale[i] = 1 + Math.abs(gamma(i) * xhat(i)) + Math.abs(beta(i));
    }
  }

  void backward(double[] dy) {
    double curvature = largestCurvature(activation);
    IntToDoubleFunction dz = i -> dy[i] * derivative(activation, z(i));
    IntToDoubleFunction size = // of dz, with what an error of z adds to it
        i -> {
      double of = 1 + Math.abs(gamma(i) * xhat(i)) + Math.abs(beta(i));
      return Math.abs(dz.applyAsDouble(i)) + curvature * of * Math.abs(dy[i]);
    };
    dx = new double[x.length];
    dxScale = new double[x.length];
    for (int[] block : elements(blocks(), this::block)) {
      double m = block.length;
      double sum = center && !given ? sum(block, i -> gamma(i) * dz.applyAsDouble(i)) / m : 0;
      double product =
          given ? 0 : sum(block, i -> gamma(i) * dz.applyAsDouble(i) * xhat(i)) / (m - correction);
      double largest = 0;
      for (int i : block) {
        double r = rstd[block(i)];
        dx[i] = r * (gamma(i) * dz.applyAsDouble(i) - sum - product * xhat(i));
        double terms = Math.abs(gamma(i)) * size.applyAsDouble(i) + Math.abs(sum)
            + Math.abs(product * xhat(i));
        largest = Math.max(largest, r * terms);
      }
      for (int i : block) {
        dxScale[i] = largest;
      }
    }
    int[][] ofChannel = elements(c, this::channel);
    dgamma = each(ofChannel, i -> dz.applyAsDouble(i) * xhat(i));
    dgammaScale = each(ofChannel, i -> size.applyAsDouble(i) * Math.abs(xhat(i)));
    dbeta = each(ofChannel, dz);
    dbetaScale = each(ofChannel, size);
  }

  private static double[] each(int[][] parts, IntToDoubleFunction term) {
    double[] sums = new double[parts.length];
    for (int p = 0; p < sums.length; ++p) {
      sums[p] = sum(parts[p], term);
    }
    return sums;
  }

  // ---- How far a result may be off

  private static final double EPS32 = Math.ulp(1f);
  private static final double EPS64 = Math.ulp(1.0);

  /** Of y[i] in f32: 3 units times the largest slope. In f64 one more, and the mean's own. */
  double yBound(DType dtype, int i) {
    double slope = largestSlope(activation);
    if (dtype == DType.F64) {
      double ofMean = Math.abs(mean[block(i)]) * rstd[block(i)];
      return 4 * slope * EPS64 * (scale[i] + ofMean);
    }
    return 3 * slope * EPS32 * scale[i] + roundingBound(dtype, y[i]);
  }

  /** Of a gradient that is stored as `dtype`: 4 units. */
  static double gradientBound(DType dtype, double exact, double scale) {
    double eps = dtype == DType.F64 ? EPS64 : EPS32;
    return 4 * eps * scale + roundingBound(dtype, exact);
  }

  // Half a step of a 16-bit format, which is what the store may add; a step of the next binade,
  // since the error before it may have led there.
  private static double roundingBound(DType dtype, double exact) {
    switch (dtype) {
      case F16:
        return Math.scalb(1.0, Math.max(Math.getExponent(exact) + 1, -14) - 11);
      case BF16:
        return Math.scalb(1.0, Math.max(Math.getExponent(exact) + 1, -126) - 8);
      default:
        return 0;
    }
  }

  // ---- Activations: values, derivatives, max |act'|, max |act''|

  static double apply(Activation activation, double z) {
    switch (activation) {
      case NONE:
        return z;
      case RELU:
        return Math.max(z, 0);
      case SILU:
        return z / (1 + Math.exp(-z));
      case GELU:
        return z * normal(z);
      case GELU_TANH:
        return z / 2 * (1 + Math.tanh(tanhArgument(z)));
      default:
        return z * Math.min(Math.max(z + 3, 0), 6) / 6;
    }
  }

  static double derivative(Activation activation, double z) {
    switch (activation) {
      case NONE:
        return 1;
      case RELU:
        return z > 0 ? 1 : 0;
      case SILU:
        double p = 1 / (1 + Math.exp(-z));
        return p * (1 + z * (1 - p));
      case GELU:
        return normal(z) + z * Math.exp(-z * z / 2) / Math.sqrt(2 * Math.PI);
      case GELU_TANH:
        double t = Math.tanh(tanhArgument(z));
        double slope = Math.sqrt(2 / Math.PI) * (1 + 3 * 0.044715 * z * z);
        return (1 + t) / 2 + z / 2 * (1 - t * t) * slope;
      default:
        return z <= -3 ? 0 : z >= 3 ? 1 : (2 * z + 3) / 6;
    }
  }

  private static double tanhArgument(double z) {
    return Math.sqrt(2 / Math.PI) * (z + 0.044715 * z * z * z);
  }

  // The distribution function of N(0, 1): 1/2 + phi(z) (z + z^3/3 + z^5/(3 5) + ...), whose terms
  // have one sign.
  private static double normal(double z) {
    if (Math.abs(z) > 9) {
      return z > 0 ? 1 : 0;
    }
    double term = z;
    double sum = 0;
    for (int k = 1; sum + term != sum; k += 2) {
      sum += term;
      term *= z * z / (k + 2);
    }
    return 0.5 + sum * Math.exp(-z * z / 2) / Math.sqrt(2 * Math.PI);
  }

  private static double largestSlope(Activation activation) {
    switch (activation) {
      case SILU:
        return 1.09984;
      case GELU:
        return 1.12891;
      case GELU_TANH:
        return 1.129;
      case HARD_SWISH:
        return 1.5;
      default:
        return 1;
    }
  }

  private static double largestCurvature(Activation activation) {
    switch (activation) {
      case SILU:
        return 0.5;
      case GELU:
      case GELU_TANH:
        return Math.sqrt(2 / Math.PI);
      case HARD_SWISH:
        return 1.0 / 3;
      default:
        return 0;
    }
  }

  // ---- 16-bit formats

  static double fromHalf(DType dtype, short bits) {
    if (dtype == DType.BF16) {
      return Float.intBitsToFloat(bits << 16);
    }
    int exponent = bits >> 10 & 31;
    int fraction = bits & 1023;
    double size = exponent == 0 ? Math.scalb((double) fraction, -24)
        : exponent == 31        ? (fraction == 0 ? Double.POSITIVE_INFINITY : Double.NaN)
                                : Math.scalb(1024.0 + fraction, exponent - 25);
    return bits < 0 ? -size : size;
  }

  /** Truncated: any number of the format will do as data. */
  static short toHalf(DType dtype, double value) {
    if (dtype == DType.BF16) {
      return (short) (Float.floatToRawIntBits((float) value) >> 16);
    }
    int exponent = Math.max(Math.getExponent(value), -15);
    int fraction = (int) Math.scalb(Math.abs(value), 10 - Math.max(exponent, -14));
    int bits = exponent == -15 ? fraction : (exponent + 15 << 10) + (fraction & 1023);
    return (short) (value < 0 ? bits | 0x8000 : bits);
  }
}
