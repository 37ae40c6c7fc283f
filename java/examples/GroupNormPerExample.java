import io.github.groupnorm.GroupNormalization;
import java.util.Random;

/**
 * Each example of x [N, C, H] is normalized by itself, in groups of C / numGroups channels over all
 * H, by the variance divided by m; there is no gamma and no beta.
 *
 * <p>(The Java program of softwarepatternslexicon.com, "Group Normalization".)
 */
public final class GroupNormPerExample {
  private GroupNormPerExample() {}

  /**
   * Compares with the definition in plain loops, in double.
   *
   * @param arguments none
   */
  public static void main(String[] arguments) {
    Random random = new Random(1);
    float[][][] input = new float[4][12][50];
    for (float[][] example : input) {
      for (float[] channel : example) {
        for (int h = 0; h < channel.length; h++) {
          channel[h] = (float) (5 * random.nextGaussian() - 1);
        }
      }
    }

    float epsilon = 1e-5f;
    GroupNormalization norm = new GroupNormalization(3, epsilon);
    float[][][] output = norm.forward(input);

    double[][][] expected = plain(input, 3, epsilon);
    double largest = 0;
    for (int n = 0; n < 4; n++) {
      for (int c = 0; c < 12; c++) {
        for (int h = 0; h < 50; h++) {
          double step = Math.ulp(1f) * (1 + Math.abs(expected[n][c][h]));
          largest = Math.max(largest, Math.abs(output[n][c][h] - expected[n][c][h]) / step);
        }
      }
    }
    boolean right = largest <= 3; // not where it is NaN
    System.out.printf(
        "each example by itself: off by %.2f steps of the type at most (3 allowed): %s%n", largest,
        right ? "ok" : "WRONG");
    System.exit(right ? 0 : 1);
  }

  private static double[][][] plain(float[][][] input, int groups, double epsilon) {
    int channels = input[0].length;
    int positions = input[0][0].length;
    double m = (double) channels / groups * positions;
    double[][][] output = new double[input.length][channels][positions];
    for (int n = 0; n < input.length; n++) {
      for (int start = 0; start < channels; start += channels / groups) {
        int end = start + channels / groups;
        double mean = 0;
        double var = 0;
        for (int c = start; c < end; c++) {
          for (int h = 0; h < positions; h++) {
            mean += input[n][c][h] / m;
          }
        }
        for (int c = start; c < end; c++) {
          for (int h = 0; h < positions; h++) {
            var += Math.pow(input[n][c][h] - mean, 2) / m;
          }
        }
        for (int c = start; c < end; c++) {
          for (int h = 0; h < positions; h++) {
            output[n][c][h] = (input[n][c][h] - mean) / Math.sqrt(var + epsilon);
          }
        }
      }
    }
    return output;
  }
}
