import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.github.groupnorm.Activation;
import io.github.groupnorm.BatchGroupNormalization;
import io.github.groupnorm.BatchNormalization;
import io.github.groupnorm.DType;
import io.github.groupnorm.Gradients;
import io.github.groupnorm.GroupNormalization;
import io.github.groupnorm.InstanceNormalization;
import io.github.groupnorm.LayerNormalization;
import io.github.groupnorm.Layout;
import io.github.groupnorm.Normalization;
import io.github.groupnorm.RmsNormalization;
import io.github.groupnorm.Statistics;
import io.github.groupnorm.Tensor;
import java.util.Random;
import org.junit.jupiter.api.Test;

/** Every layer with every option, forward and backward, against plain double loops. */
final class OptionsTest {
  private static final int[][] SHAPES = {{4, 12, 5, 7}, {2, 8, 33}, {6, 24}};
  private static final double EPSILON = 1e-3;

  /** A layer, the examples and channels of its blocks, and whether it centers. */
  private static final class Kind {
    final Normalization layer;
    final int examples;
    final int channels;
    final boolean center;

    Kind(Normalization layer, int examples, int channels, boolean center) {
      this.layer = layer;
      this.examples = examples;
      this.channels = channels;
      this.center = center;
    }

    static Kind[] of(int n, int c) {
      return new Kind[] {new Kind(new GroupNormalization(4, EPSILON), 1, c / 4, true),
          new Kind(new BatchGroupNormalization(4, EPSILON), n, c / 4, true),
          new Kind(new LayerNormalization(EPSILON), 1, c, true),
          new Kind(new RmsNormalization(EPSILON), 1, c, false),
          new Kind(new InstanceNormalization(EPSILON), 1, 1, true),
          new Kind(new BatchNormalization(EPSILON), n, 1, true)};
    }
  }

  private interface Check {
    void run(String what, Kind kind, Plain plain, Tensor x);
  }

  // Runs `check` on every layer, shape, dtype, layout, activation, correction, with and without
  // parameters.
  private static void forAll(Check check) {
    for (int[] shape : SHAPES) {
      for (DType dtype : DType.values()) {
        for (Layout layout : Layout.values()) {
          Tensor x = Tensors.normal(7, 2, 3, dtype, layout, shape);
          for (Kind kind : Kind.of(shape[0], shape[1])) {
            for (Activation activation : Activation.values()) {
              for (int options = 0; options < 4; ++options) {
                boolean parameters = options % 2 == 1;
                int correction = options / 2;
                int m = kind.examples * kind.channels * (x.size() / shape[0] / shape[1]);
                if (m == 1 && correction == 1) {
                  continue;
                }
                check.run(kind.layer + " " + x, kind,
                    prepare(kind, x, activation, correction, parameters), x);
              }
            }
          }
        }
      }
    }
  }

  private static Plain prepare(
      Kind kind, Tensor x, Activation activation, int correction, boolean parameters) {
    Plain plain = new Plain();
    plain.n = x.shape()[0];
    plain.c = x.shape()[1];
    plain.s = x.size() / plain.n / plain.c;
    plain.layout = x.layout();
    plain.examples = kind.examples;
    plain.channels = kind.channels;
    plain.center = kind.center;
    plain.correction = correction;
    plain.epsilon = EPSILON;
    plain.activation = activation;
    plain.x = Tensors.numbers(x);
    if (parameters) {
      Random random = new Random(3);
      plain.gamma = new double[plain.c];
      plain.beta = new double[plain.c];
      for (int c = 0; c < plain.c; ++c) { // numbers that f32 holds
        plain.gamma[c] = (float) (1 + 0.5 * random.nextGaussian());
        plain.beta[c] = (float) random.nextGaussian();
      }
    }
    kind.layer.setActivation(activation);
    kind.layer.setCorrection(correction);
    kind.layer.setGamma(plain.gamma);
    kind.layer.setBeta(plain.beta);
    return plain;
  }

  private static void assertY(String what, Plain plain, Tensor y) {
    for (int i = 0; i < y.size(); ++i) {
      double off = Math.abs(Tensors.get(y, i) - plain.y[i]);
      int at = i;
      assertTrue(off <= plain.yBound(y.dtype(), i),
          () -> what + ": y[" + at + "] is " + Tensors.get(y, at) + ", not " + plain.y[at]);
    }
  }

  private static void assertGradient(
      String what, DType dtype, double[] actual, double[] exact, double[] scale) {
    assertEquals(exact.length, actual.length, what);
    for (int i = 0; i < exact.length; ++i) {
      int at = i;
      assertTrue(Math.abs(actual[i] - exact[i]) <= Plain.gradientBound(dtype, exact[i], scale[i]),
          () -> what + "[" + at + "] is " + actual[at] + ", not " + exact[at]);
    }
  }

  private static void assertGradients(String what, Plain plain, Tensor dx, Gradients gradients) {
    assertGradient(what + ": dx", dx.dtype(), Tensors.numbers(dx), plain.dx, plain.dxScale);
    DType parameter = dx.dtype() == DType.F64 ? DType.F64 : DType.F32;
    assertGradient(
        what + ": dgamma", parameter, gradients.gamma(), plain.dgamma, plain.dgammaScale);
    assertGradient(what + ": dbeta", parameter, gradients.beta(), plain.dbeta, plain.dbetaScale);
  }

  @Test
  void forwardAndBackwardAreTheDefinition() {
    forAll((what, kind, plain, x) -> {
      plain.statistics();
      plain.forward();
      Tensor y = x.zerosLike();
      Statistics statistics = kind.layer.forwardWithStatistics(x, y);
      assertY(what, plain, y);

      Tensor again = kind.layer.forward(x);
      assertEquals(-1, Tensors.firstDifference(y, again), what + ": forward without statistics");

      for (int b = 0; b < plain.mean.length; ++b) {
        double step = 8 * Math.ulp(1f) * plain.rstd[b]; // f32 sums of a few hundred terms
        assertEquals(plain.rstd[b], statistics.rstd()[b], step, what);
        assertEquals(plain.mean[b], statistics.mean()[b], 8 * Math.ulp(1f) / plain.rstd[b], what);
      }

      plain.mean = statistics.mean();
      plain.rstd = statistics.rstd();
      Tensor dy = Tensors.normal(11, 0, 1, x.dtype(), x.layout(), x.shape());
      Tensor dx = x.zerosLike();
      Gradients gradients = kind.layer.backward(x, dy, dx, statistics);
      plain.backward(Tensors.numbers(dy));
      assertGradients(what, plain, dx, gradients);
    });
  }

  @Test
  void givenStatisticsAreTakenAsConstants() {
    forAll((what, kind, plain, x) -> {
      int blocks = plain.n / plain.examples * (plain.c / plain.channels);
      plain.given = true;
      plain.mean = new double[blocks];
      double[] variance = new double[blocks];
      for (int b = 0; b < blocks; ++b) {
        plain.mean[b] = 2 + b * 0.25;
        variance[b] = 9 + b;
      }
      Statistics statistics = Statistics.ofVariance(plain.mean, variance, EPSILON);
      plain.rstd = statistics.rstd();
      plain.forward();
      Tensor y = kind.layer.forward(x); // of its own statistics, which must not count
      kind.layer.apply(x, y, statistics);
      assertY(what, plain, y);

      Tensor dy = Tensors.normal(11, 0, 1, x.dtype(), x.layout(), x.shape());
      Tensor dx = x.zerosLike();
      Gradients gradients = kind.layer.applyBackward(x, dy, dx, statistics);
      plain.backward(Tensors.numbers(dy));
      assertGradients(what, plain, dx, gradients);
    });
  }

  @Test
  void meanOfTenThousandDeviationsCostsNoDigit() {
    for (DType dtype : new DType[] {DType.F32, DType.F64}) {
      for (Layout layout : Layout.values()) {
        Tensor x = Tensors.normal(5, 1e4, 1, dtype, layout, 2, 32, 64, 64);
        Plain plain = new Plain();
        plain.n = 2;
        plain.c = 32;
        plain.s = 64 * 64;
        plain.layout = layout;
        plain.examples = 1;
        plain.channels = 4;
        plain.epsilon = 1e-5;
        plain.x = Tensors.numbers(x);
        plain.statistics();
        plain.forward();
        GroupNormalization norm = new GroupNormalization(8);
        Tensor y = x.zerosLike();
        Statistics statistics = norm.forwardWithStatistics(x, y);
        assertY(norm + " " + x, plain, y);

        plain.mean = statistics.mean();
        plain.rstd = statistics.rstd();
        Tensor dy = Tensors.normal(6, 0, 1, dtype, layout, x.shape());
        Tensor dx = x.zerosLike();
        Gradients gradients = norm.backward(x, dy, dx, statistics);
        plain.backward(Tensors.numbers(dy));
        assertGradients(norm + " " + x, plain, dx, gradients);
      }
    }
  }
}
