import io.github.groupnorm.GroupNormalization;
import java.lang.management.ManagementFactory;
import java.lang.management.ThreadMXBean;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Random;
import java.util.StringJoiner;

/**
 * Group normalization by the engine beside plain Java loops that the JIT has warmed, all on the
 * calling thread, as JSON for bench/report.py.
 *
 * <p>They take turns, round by round in one process, so that all meet the same machine; what counts
 * is the median of the rounds, in processor time of the thread. Arrays and buffers stay where they
 * are ("hot").
 */
public final class Bench {
  private static final float EPSILON = 1e-5f;
  private static final double WARM_SECONDS = 2; // for each
  private static final double ROUND_SECONDS = 0.02;
  private static final int ROUNDS = 101;
  private static final ThreadMXBean THREADS = ManagementFactory.getThreadMXBean();

  private Bench() {}

  /**
   * Prints the JSON.
   *
   * @param arguments {@code --quick} for a moment of each
   */
  public static void main(String[] arguments) {
    boolean quick = Arrays.asList(arguments).contains("--quick");
    StringJoiner cases = new StringJoiner(",\n  ", "{\"jvm\": [\n  ", "\n]}");
    for (int[] shape : new int[][] {{16, 32, 64, 64, 8}, {1, 32, 8, 8, 8}}) {
      cases.add(measure(shape, quick));
    }
    System.out.println(cases);
  }

  private static String measure(int[] shape, boolean quick) {
    int n = shape[0];
    int c = shape[1];
    int s = shape[2] * shape[3];
    int groups = shape[4];
    float[] flat = new float[n * c * s];
    Random random = new Random(1);
    for (int i = 0; i < flat.length; ++i) {
      flat[i] = (float) (1 + random.nextGaussian());
    }
    float[] flatOut = new float[flat.length];
    float[][][] nested = new float[n][c][s];
    for (int row = 0; row < n * c; ++row) {
      System.arraycopy(flat, row * s, nested[row / c][row % c], 0, s);
    }
    FloatBuffer in = direct(flat.length);
    in.duplicate().put(flat);
    FloatBuffer out = direct(flat.length);

    GroupNormalization norm = new GroupNormalization(groups, EPSILON);
    norm.setThreads(1);
    Object[] sink = new Object[1]; // so that no result goes unused
    Map<String, Runnable> contestants = new LinkedHashMap<>();
    contestants.put("ours, FloatBuffer", () -> norm.forward(in, out, n, c, s));
    contestants.put("ours, float[][][]", () -> sink[0] = norm.forward(nested));
    contestants.put("loop, float[]", () -> flatLoop(flat, flatOut, n, c, s, groups));
    contestants.put("loop, float[][][]", () -> sink[0] = nestedLoop(nested, groups));

    contestants.values().forEach(Runnable::run);
    for (int i = 0; i < flat.length; ++i) { // a wrong result is not worth a time
      if (!(Math.abs(out.get(i) - flatOut[i]) < 1e-4)) {
        throw new IllegalStateException("element " + i + " differs from that of the loop");
      }
    }

    Map<String, double[]> seconds = new LinkedHashMap<>();
    Map<String, Integer> calls = new LinkedHashMap<>();
    contestants.forEach((name, call) -> {
      double each = warm(call, quick ? 0.1 : WARM_SECONDS);
      calls.put(name, (int) Math.max(1, ROUND_SECONDS / each));
      seconds.put(name, new double[quick ? 3 : ROUNDS]);
    });
    for (int round = 0; round < (quick ? 3 : ROUNDS); ++round) {
      int at = round;
      contestants.forEach(
          (name, call) -> seconds.get(name)[at] = time(call, calls.get(name)) / calls.get(name));
    }

    StringJoiner times = new StringJoiner(", ", "{", "}");
    seconds.forEach((name, of) -> {
      Arrays.sort(of);
      times.add(String.format("\"%s\": %.3f", name, of[of.length / 2] * 1e6));
    });
    return String.format(
        "{\"shape\": \"%dx%dx%dx%d\", \"groups\": %d, \"java\": \"%s\", \"p50_us\": %s}", shape[0],
        shape[1], shape[2], shape[3], groups, System.getProperty("java.vm.version"), times);
  }

  // Until C2 has compiled it; the seconds of a call at the end.
  private static double warm(Runnable call, double seconds) {
    double each = 0;
    for (long start = System.nanoTime(); each == 0 || System.nanoTime() - start < seconds * 1e9;) {
      each = time(call, 10) / 10;
    }
    return each;
  }

  private static double time(Runnable call, int count) {
    long start = THREADS.getCurrentThreadCpuTime();
    for (int i = 0; i < count; ++i) {
      call.run();
    }
    return (THREADS.getCurrentThreadCpuTime() - start) / 1e9;
  }

  private static FloatBuffer direct(int count) {
    return ByteBuffer.allocateDirect(4 * count).order(ByteOrder.nativeOrder()).asFloatBuffer();
  }

  // As a Java programmer would write it for speed: flat arrays, float sums, one division a group.
  private static void flatLoop(float[] x, float[] y, int n, int c, int s, int groups) {
    int m = c / groups * s;
    for (int start = 0; start < n * c * s; start += m) {
      float sum = 0;
      for (int i = start; i < start + m; ++i) {
        sum += x[i];
      }
      float mean = sum / m;
      float squares = 0;
      for (int i = start; i < start + m; ++i) {
        float d = x[i] - mean;
        squares += d * d;
      }
      float rstd = (float) (1 / Math.sqrt(squares / m + EPSILON));
      for (int i = start; i < start + m; ++i) {
        y[i] = (x[i] - mean) * rstd;
      }
    }
  }

  // The same over nested arrays, as programs that keep them do.
  private static float[][][] nestedLoop(float[][][] x, int groups) {
    int channels = x[0].length;
    int positions = x[0][0].length;
    float[][][] y = new float[x.length][channels][positions];
    int m = channels / groups * positions;
    for (int n = 0; n < x.length; ++n) {
      for (int start = 0; start < channels; start += channels / groups) {
        int end = start + channels / groups;
        float sum = 0;
        for (int c = start; c < end; ++c) {
          for (float value : x[n][c]) {
            sum += value;
          }
        }
        float mean = sum / m;
        float squares = 0;
        for (int c = start; c < end; ++c) {
          for (float value : x[n][c]) {
            squares += (value - mean) * (value - mean);
          }
        }
        float deviation = (float) Math.sqrt(squares / m + EPSILON);
        for (int c = start; c < end; ++c) {
          for (int h = 0; h < positions; ++h) {
            y[n][c][h] = (x[n][c][h] - mean) / deviation;
          }
        }
      }
    }
    return y;
  }
}
