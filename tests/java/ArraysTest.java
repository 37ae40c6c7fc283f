import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.github.groupnorm.BatchGroupNormalization;
import io.github.groupnorm.GroupNormalization;
import io.github.groupnorm.LayerNormalization;
import java.nio.FloatBuffer;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;

/** Nested arrays: the same numbers as by buffers, and what is refused. */
final class ArraysTest {
  private final GroupNormalization norm = new GroupNormalization(3, 1e-5f);

  private static float[][][] normal(int n, int c, int s) {
    Random random = new Random(9);
    float[][][] x = new float[n][c][s];
    for (float[][] example : x) {
      for (float[] row : example) {
        for (int i = 0; i < s; ++i) {
          row[i] = (float) random.nextGaussian();
        }
      }
    }
    return x;
  }

  @Test
  void giveTheBitsOfBuffers() {
    float[][][] x = normal(4, 12, 50);
    FloatBuffer flat = Tensors.floats(4 * 12 * 50);
    for (float[][] example : x) {
      for (float[] row : example) {
        flat.put(row);
      }
    }
    flat.rewind();
    float first = x[0][0][0];
    float[][][] y = norm.forward(x);
    norm.forward(flat, flat, 4, 12, 50);
    for (int i = 0; i < flat.capacity(); ++i) {
      assertEquals(flat.get(i), y[i / 600][i / 50 % 12][i % 50], "element " + i);
    }
    float[] row = new float[flat.capacity()];
    double[] wide = new double[flat.capacity()];
    for (int i = 0; i < row.length; ++i) {
      row[i] = x[i / 600][i / 50 % 12][i % 50];
      wide[i] = row[i];
    }
    float[] yRow = norm.forward(row, 4, 12, 50);
    double[] yWide = norm.forward(wide, 4, 12, 50);
    for (int i = 0; i < row.length; ++i) {
      assertEquals(flat.get(i), yRow[i], "element " + i);
      assertEquals(yWide[i], yRow[i], 4 * Math.ulp(1f) * (1 + Math.abs(yWide[i])), "element " + i);
    }
    assertEquals(first, row[0]);
    assertEquals(first, x[0][0][0]);
    assertTrue(y[0] != x[0] && y[0][0] != x[0][0]);
  }

  @Test
  void ofDoublesKeepTheirPrecision() {
    float[][][] x = normal(2, 6, 5);
    double[][][] wide = new double[2][6][5];
    for (int i = 0; i < 60; ++i) {
      wide[i / 30][i / 5 % 6][i % 5] = x[i / 30][i / 5 % 6][i % 5] + 1e-12;
    }
    double[][][] y = norm.forward(wide);
    Plain plain = new Plain();
    plain.n = 2;
    plain.c = 6;
    plain.s = 5;
    plain.examples = 1;
    plain.channels = 2;
    plain.epsilon = 1e-5f;
    plain.x = new double[60];
    for (int i = 0; i < 60; ++i) {
      plain.x[i] = wide[i / 30][i / 5 % 6][i % 5];
    }
    plain.statistics();
    plain.forward();
    for (int i = 0; i < 60; ++i) {
      assertEquals(
          plain.y[i], y[i / 30][i / 5 % 6][i % 5], plain.yBound(io.github.groupnorm.DType.F64, i));
    }
  }

  @Test
  void aMatrixHasChannelsInItsRows() {
    double[][] x = {{1, 2, 3, 5}, {7, 11, 13, 17}, {0, 1, 0, 1}};
    double[][] y = new LayerNormalization().forward(x);
    float[][] narrow = new LayerNormalization().forward(new float[][] {{1, 2, 3, 5}});
    for (int c = 0; c < 4; ++c) {
      double mean = 2.75;
      double expected = (x[0][c] - mean) / Math.sqrt(2.1875 + 1e-5);
      assertEquals(expected, y[0][c], 1e-15);
      assertEquals(expected, narrow[0][c], 1e-6);
    }
    double[][] columns = new BatchGroupNormalization(2).forward(x);
    double sum = 0;
    for (double[] row : columns) {
      sum += row[0] + row[1];
    }
    assertEquals(0, sum, 1e-14);
  }

  @Test
  void emptyOnesComeBackEmpty() {
    assertEquals(0, norm.forward(new float[0][][]).length);
    assertEquals(0, norm.forward(new double[0][]).length);
    assertArrayEquals(new float[2][0][], norm.forward(new float[2][0][]));
    assertArrayEquals(new float[2][3][0], norm.forward(new float[2][3][0]));
    assertArrayEquals(new double[2][0], norm.forward(new double[2][0]));
    assertEquals(0, norm.forward(new float[0], 2, 3, 0).length);
  }

  @Test
  void refusesOtherLengths() {
    float[][][] fewRows = normal(2, 3, 4);
    fewRows[1] = new float[2][4];
    float[][][] shortRow = normal(2, 3, 4);
    shortRow[1][2] = new float[3];
    assertRefused("x[1]: must be as long as the first, 3; got 2", () -> norm.forward(fewRows));
    assertRefused("x[1][2]: must be as long as the first, 4; got 3", () -> norm.forward(shortRow));
    assertRefused("x[1]: must be as long as the first, 3; got 4",
        () -> norm.forward(new double[][] {{1, 2, 3}, {1, 2, 3, 4}}));
    assertRefused(
        "groups: must be at least 1 and divide the channels", () -> norm.forward(normal(1, 4, 2)));
    assertThrows(
        NullPointerException.class, () -> norm.forward(new float[][][] {{{1}, {1}, null}}));
    assertThrows(NullPointerException.class, () -> norm.forward(new float[][][] {null}));
    assertRefused("x: must have 24 numbers for the shape [2, 3, 4]; got 23",
        () -> norm.forward(new float[23], 2, 3, 4));
    assertRefused("x: must have 24 numbers for the shape [2, 3, 4]; got 25",
        () -> norm.forward(new double[25], 2, 3, 4));
    assertRefused("shape: no size may be negative", () -> norm.forward(new float[4], -1, 4, 1));
  }

  private static void assertRefused(String words, Executable call) {
    String message = assertThrows(IllegalArgumentException.class, call).getMessage();
    assertTrue(message.contains(words), () -> "'" + message + "' does not say '" + words + "'");
  }
}
