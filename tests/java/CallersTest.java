import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.github.groupnorm.DType;
import io.github.groupnorm.GroupNormalization;
import io.github.groupnorm.Layout;
import io.github.groupnorm.Statistics;
import io.github.groupnorm.Tensor;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.junit.jupiter.api.Test;

/** Many callers, many calls: the same bits, and no memory that stays behind. */
final class CallersTest {
  // Large enough for the engine to share a call among threads.
  private final Tensor x = Tensors.normal(1, 1, 2, DType.F32, Layout.CHANNELS_FIRST, 2, 32, 64, 64);

  @Test
  void bitsDoNotDependOnThreads() {
    GroupNormalization norm = new GroupNormalization(8);
    norm.setThreads(1);
    Tensor alone = norm.forward(x);
    for (int threads : new int[] {0, 2, 3, 7, 1024}) {
      norm.setThreads(threads);
      assertEquals(-1, Tensors.firstDifference(alone, norm.forward(x)), threads + " threads");
    }
  }

  // Each caller has data and a shape of its own, and knows what should come of them by either of
  // two settings, between which another thread changes all the time.
  @Test
  void manyThreadsShareALayer() throws Exception {
    GroupNormalization norm = new GroupNormalization(8);
    List<Callable<Void>> callers = new ArrayList<>();
    for (int i = 0; i < 8; ++i) {
      // The last ones are large enough for the engine's threads, and for a workspace.
      int s = i < 6 ? 5 + i : 16384;
      Tensor mine = Tensors.normal(i, i, 2, DType.F32, Layout.CHANNELS_FIRST, 1 + i % 2, 16, s);
      callers.add(() -> call(norm, mine, s > 100 ? 50 : 20000));
    }
    callers.add(() -> {
      for (int i = 0; i < 20000; ++i) {
        norm.setCorrection(i % 2);
        norm.setThreads(i % 3);
      }
      return null;
    });
    ExecutorService executor = Executors.newFixedThreadPool(callers.size());
    try {
      for (Future<Void> caller : executor.invokeAll(callers)) {
        caller.get();
      }
    } finally {
      executor.shutdown();
    }
  }

  private static Void call(GroupNormalization shared, Tensor x, int times) {
    Tensor[] expected = {x.zerosLike(), x.zerosLike()};
    Tensor[] expectedDx = {x.zerosLike(), x.zerosLike()};
    Statistics[] statistics = new Statistics[2];
    double[] dgamma = null;
    for (int correction = 0; correction < 2; ++correction) {
      GroupNormalization alone = new GroupNormalization(8);
      alone.setCorrection(correction);
      statistics[correction] = alone.forwardWithStatistics(x, expected[correction]);
      dgamma = alone.backward(x, x, expectedDx[correction], statistics[0]).gamma();
    }
    Tensor y = x.zerosLike();
    for (int i = 0; i < times; ++i) {
      String which = "call " + i + " of x " + x;
      Statistics of = shared.forwardWithStatistics(x, y);
      int correction = Arrays.equals(of.rstd(), statistics[0].rstd()) ? 0 : 1;
      assertTrue(Arrays.equals(statistics[correction].rstd(), of.rstd()), which);
      assertTrue(Arrays.equals(statistics[correction].mean(), of.mean()), which);
      assertEquals(-1, Tensors.firstDifference(expected[correction], y), which);

      double[] sums = shared.backward(x, x, y, statistics[0]).gamma();
      assertTrue(Arrays.equals(dgamma, sums), which); // in which the correction has no part
      int nearest = Tensors.firstDifference(expectedDx[0], y) == -1 ? 0 : 1;
      assertEquals(-1, Tensors.firstDifference(expectedDx[nearest], y), which);
    }
    return null;
  }

  // 4 GB of arrays and 2 GB of tensors went through; a hundredth of it may have stayed.
  @Test
  void callsLeaveNoMemoryBehind() throws Exception {
    GroupNormalization norm = new GroupNormalization(8);
    float[][][] arrays = new float[4][32][8192];
    Tensor y = x.zerosLike();
    for (int i = 0; i < 20; ++i) {
      norm.forward(arrays);
    }
    long before = residentBytes();
    for (int i = 0; i < 1000; ++i) {
      norm.forward(arrays);
    }
    for (int i = 0; i < 2000; ++i) {
      norm.backward(x, x, y, norm.forwardWithStatistics(x, y));
    }
    long grown = residentBytes() - before;
    assertTrue(grown < 400 << 20, () -> "grown by " + (grown >> 20) + " MB");
  }

  // Layers that are dropped give back what they hold: 4000 of them with 0.75 MB each.
  @Test
  void droppedLayersLeaveNoMemoryBehind() throws Exception {
    double[] gamma = new double[1 << 16];
    long before = residentBytes();
    for (int i = 0; i < 4000; ++i) {
      new GroupNormalization(8).setGamma(gamma);
    }
    long grown = residentBytes() - before;
    long most = 2 * Runtime.getRuntime().maxMemory(); // the heap and the buffers outside of it
    assertTrue(grown < most, () -> "grown by " + (grown >> 20) + " MB");
  }

  private static long residentBytes() throws Exception {
    Path statm = Path.of("/proc/self/statm");
    return Files.exists(statm) ? Long.parseLong(Files.readString(statm).split(" ")[1]) * 4096 : 0;
  }

  // The engine takes tens of KB of the caller's stack, so a stack that is almost full must not end
  // the process: there is a result, or a StackOverflowError as from any Java method.
  @Test
  void aDeepStackIsNoDanger() throws Exception {
    GroupNormalization norm = new GroupNormalization(8);
    norm.setThreads(1);
    Tensor y = x.zerosLike();
    Statistics statistics = norm.forwardWithStatistics(x, y);
    Throwable[] failed = new Throwable[1];
    Thread thread = new Thread(null, () -> {
      try {
        descend(norm, y.zerosLike(), y, statistics);
      } catch (StackOverflowError expected) {
        // of descend itself
      } catch (Throwable other) {
        failed[0] = other;
      }
    }, "deep", 512 << 10);
    thread.start();
    thread.join();
    assertEquals(null, failed[0]);
  }

  private void descend(GroupNormalization norm, Tensor mine, Tensor dy, Statistics statistics) {
    try {
      descend(norm, mine, dy, statistics);
    } catch (StackOverflowError overflow) {
      // Here and in the frames above the stack is nearly full.
    }
    norm.backward(x, dy, mine, statistics);
  }
}
