package io.github.groupnorm;

import com.sun.jna.Native;
import com.sun.jna.Pointer;

/** The memory of one call beside tensors and parameters, which grows to what calls need. */
final class Scratch {
  /** gn_forward_args and gn_backward_args: fields as wide as a pointer, the size of all first. */
  private final Direct forward = new Direct(9L * Native.POINTER_SIZE);

  private final Direct backward = new Direct(11L * Native.POINTER_SIZE);
  private Direct workspace;
  private Direct statistics;
  private Direct gradients;

  /** gn_forward_args with these values behind the size. */
  Pointer forward(long... values) {
    return fill(forward, values);
  }

  /** gn_backward_args with these values behind the size. */
  Pointer backward(long... values) {
    return fill(backward, values);
  }

  private static Pointer fill(Direct struct, long[] values) {
    struct.bytes.clear();
    put(struct, struct.bytes.capacity());
    for (long value : values) {
      put(struct, value);
    }
    return struct.pointer;
  }

  private static void put(Direct struct, long value) {
    if (Native.POINTER_SIZE == Long.BYTES) {
      struct.bytes.putLong(value);
    } else {
      struct.bytes.putInt((int) value);
    }
  }

  Pointer workspace(long bytes) {
    workspace = Direct.atLeast(bytes, workspace);
    return workspace.pointer;
  }

  /** Room for the means of `blocks` blocks and, behind them, their rstds. */
  Direct statistics(long blocks) {
    statistics = Direct.atLeast(2 * blocks * Double.BYTES, statistics);
    return statistics;
  }

  /** Room for dgamma and, behind it, dbeta. */
  Direct gradients(long bytes) {
    gradients = Direct.atLeast(2 * bytes, gradients);
    return gradients;
  }
}
