import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.github.groupnorm.DType;
import io.github.groupnorm.Gradients;
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

  // Calls of two shapes and two settings on one layer, each with its own result.
  @Test
  void manyThreadsShareALayer() throws Exception {
    GroupNormalization norm = new GroupNormalization(8);
    Tensor small = Tensors.normal(2, 1, 2, DType.F64, Layout.CHANNELS_LAST, 3, 16, 5);
    Tensor y = x.zerosLike();
    Statistics statistics = norm.forwardWithStatistics(x, y);
    Tensor ySmall = norm.forward(small);
    Tensor dx = x.zerosLike();
    Gradients gradients = norm.backward(x, y, dx, statistics);
    norm.setCorrection(1);
    Tensor unbiased = norm.forward(x);
    assertTrue(Tensors.firstDifference(y, unbiased) >= 0);

    Callable<Void> caller = () -> {
      Tensor mine = x.zerosLike();
      for (int i = 0; i < 30; ++i) {
        Statistics of = norm.forwardWithStatistics(x, mine);
        boolean biased = Arrays.equals(of.rstd(), statistics.rstd());
        assertEquals(-1, Tensors.firstDifference(biased ? y : unbiased, mine), "call " + i);
      }
      return null;
    };
    Callable<Void> callerOfAnother = () -> {
      GroupNormalization fixed = new GroupNormalization(8);
      Tensor mine = x.zerosLike();
      for (int i = 0; i < 30; ++i) {
        assertEquals(-1, Tensors.firstDifference(ySmall, fixed.forward(small)), "call " + i);
        Gradients of = fixed.backward(x, y, mine, statistics);
        assertEquals(-1, Tensors.firstDifference(dx, mine), "call " + i);
        assertTrue(Arrays.equals(gradients.gamma(), of.gamma()), "call " + i);
        norm.forward(small);
      }
      return null;
    };
    Callable<Void> setter = () -> {
      for (int i = 0; i < 2000; ++i) {
        norm.setCorrection(i % 2);
        norm.setThreads(i % 3);
      }
      return null;
    };
    ExecutorService executor = Executors.newFixedThreadPool(9);
    try {
      List<Callable<Void>> calls = new ArrayList<>();
      for (int i = 0; i < 4; ++i) {
        calls.add(caller);
        calls.add(callerOfAnother);
      }
      calls.add(setter);
      for (Future<Void> call : executor.invokeAll(calls)) {
        call.get();
      }
    } finally {
      executor.shutdown();
    }
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
