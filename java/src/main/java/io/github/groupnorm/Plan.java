package io.github.groupnorm;

import com.sun.jna.Pointer;
import java.util.function.Supplier;

/** A checked spec with its schedule, and what it was made of. Immutable, shared by threads. */
final class Plan {
  final Pointer pointer;
  final long blocks;
  final Engine.SizeT workspaceBytes;
  final Engine.SizeT backwardWorkspaceBytes;
  private final Direct memory = new Direct(Engine.PLAN_BYTES);
  private final Engine.Spec spec;

  /** Throws what the engine has to say against `spec`, with `got` behind it. */
  Plan(Engine.Spec spec, Supplier<String> got) {
    this.spec = spec;
    pointer = memory.pointer;
    check(Engine.gn_plan_make(spec, null, pointer), got);
    blocks = Engine.gn_plan_blocks(pointer);
    workspaceBytes = Engine.gn_plan_workspace_bytes(pointer);
    backwardWorkspaceBytes = Engine.gn_plan_backward_workspace_bytes(pointer);
  }

  /** Throws the words of a status that is not ok, with `got` behind them. */
  static void check(int status, Supplier<String> got) {
    if (status != Engine.GN_STATUS_OK) {
      throw new IllegalArgumentException(Engine.gn_status_string(status) + "; got " + got.get());
    }
  }

  /** Whether this is the plan of such a call of the layer that made it. */
  boolean fits(Tensor x, Settings settings, boolean given) {
    return spec.shape.n == x.examples() && spec.shape.c == x.channels()
        && spec.shape.s == x.positions() && spec.layout == x.layout().ordinal()
        && spec.data == x.dtype().ordinal() && spec.activation == settings.activation.ordinal()
        && spec.correction == settings.correction && (spec.given_statistics != 0) == given;
  }
}
