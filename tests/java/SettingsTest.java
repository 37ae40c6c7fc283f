import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.github.groupnorm.Activation;
import io.github.groupnorm.BatchGroupNormalization;
import io.github.groupnorm.GroupNormalization;
import io.github.groupnorm.LayerNormalization;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;

/** What a layer can be told, and what it refuses in which words. */
final class SettingsTest {
  private final GroupNormalization norm = new GroupNormalization(8, 1e-5f);

  private static void assertRefused(String words, Executable call) {
    String message = assertThrows(IllegalArgumentException.class, call).getMessage();
    assertEquals(words, message);
  }

  @Test
  void constructorsRefuseAtOnce() {
    String groups = "groups: must be at least 1 and divide the channels; got ";
    assertRefused(groups + "GroupNormalization(numGroups=0, epsilon=1.0E-5)",
        () -> new GroupNormalization(0));
    assertRefused(groups + "BatchGroupNormalization(numGroups=-3, epsilon=1.0E-5)",
        () -> new BatchGroupNormalization(-3));
    String epsilon = "eps: must be finite and not negative; got ";
    assertRefused(epsilon + "GroupNormalization(numGroups=2, epsilon=-1.0)",
        () -> new GroupNormalization(2, -1f));
    assertRefused(epsilon + "GroupNormalization(numGroups=2, epsilon=NaN)",
        () -> new GroupNormalization(2, Double.NaN));
    assertRefused(epsilon + "LayerNormalization(epsilon=Infinity)",
        () -> new LayerNormalization(Double.POSITIVE_INFINITY));
  }

  @Test
  void settersRefuseAtOnceAndChangeNothing() {
    assertRefused("correction: must be 0 (divide by m) or 1 (divide by m - 1); "
            + "got GroupNormalization(numGroups=8, epsilon=9.999999747378752E-6, correction=2)",
        () -> norm.setCorrection(2));
    assertEquals(0, norm.getCorrection());
    assertRefused("threads: must be from 1 to 1024, or 0; got -1", () -> norm.setThreads(-1));
    assertRefused("threads: must be from 1 to 1024, or 0; got 1025", () -> norm.setThreads(1025));
    assertEquals(0, norm.getThreads());
    assertRefused(
        "gamma: must have one value a channel; got none", () -> norm.setGamma(new double[0]));
    assertRefused(
        "beta: must have one value a channel; got none", () -> norm.setBeta(new float[0]));
    norm.setGamma(new double[16]);
    assertRefused("gamma: must have one value a channel; got 16, x is [1, 8, 2] F32 CHANNELS_FIRST",
        () -> norm.forward(new float[1][8][2]));
    norm.setGamma((double[]) null);
    norm.forward(new float[1][8][2]);
  }

  @Test
  void tellsWhatWasSet() {
    assertEquals(8, norm.getNumGroups());
    assertEquals(1e-5f, norm.getEpsilon());
    assertEquals(1e-5, new GroupNormalization(8, 1e-5).getEpsilon());
    assertEquals(1e-5, new GroupNormalization(8).getEpsilon());
    assertNull(norm.getGamma());
    double[] gamma = {0.1, 2};
    norm.setGamma(gamma);
    gamma[0] = 5;
    assertArrayEquals(new double[] {0.1, 2}, norm.getGamma());
    norm.getGamma()[1] = 7;
    assertArrayEquals(new double[] {0.1, 2}, norm.getGamma());
    norm.setBeta(new float[] {0.5f, 0.25f});
    assertArrayEquals(new double[] {0.5, 0.25}, norm.getBeta());
    norm.setActivation(Activation.SILU);
    norm.setCorrection(1);
    norm.setThreads(2);
    assertEquals(Activation.SILU, norm.getActivation());
    assertEquals(1, norm.getCorrection());
    assertEquals(2, norm.getThreads());
    assertTrue(norm.toString().endsWith("activation=SILU, correction=1)"), norm.toString());
  }

  @Test
  void oneElementHasNoUnbiasedVariance() {
    GroupNormalization each = new GroupNormalization(4);
    each.setCorrection(1);
    String message =
        assertThrows(IllegalArgumentException.class, () -> each.forward(new float[1][4][1]))
            .getMessage();
    assertTrue(
        message.startsWith("correction: 1 divides by m - 1 and needs two elements"), message);
    assertTrue(message.contains("x [1, 4, 1] F32"), message);
  }
}
