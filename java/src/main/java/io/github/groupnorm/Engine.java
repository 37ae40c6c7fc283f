package io.github.groupnorm;

import com.sun.jna.IntegerType;
import com.sun.jna.Native;
import com.sun.jna.NativeLibrary;
import com.sun.jna.Pointer;
import com.sun.jna.Structure;
import com.sun.jna.Structure.FieldOrder;
import java.io.File;

/**
 * The C interface of the engine, by JNA's direct mapping. Functions, structs and fields have the
 * names of {@code include/groupnorm/groupnorm.h}, which documents them.
 */
final class Engine {
  private static final String NAME = "groupnorm";
  private static final String FILE_PROPERTY = "groupnorm.library";
  private static final int ABI_VERSION = 1;

  static final int GN_STATUS_OK = 0;
  static final int MAX_THREADS = 1024; // of gn_executor
  static final int PLAN_BYTES = 64 * Long.BYTES; // of gn_plan

  static {
    NativeLibrary library = open();
    int version = library.getFunction("gn_abi_version").invokeInt(new Object[0]);
    if (version != ABI_VERSION) {
      throw new UnsatisfiedLinkError(
          library + ": has version " + version + " of the C interface, not " + ABI_VERSION);
    }
    Native.register(Engine.class, library);
  }

  private Engine() {}

  private static NativeLibrary open() {
    String file = System.getProperty(FILE_PROPERTY);
    try {
      if (file != null) {
        return NativeLibrary.getInstance(new File(file).getAbsolutePath());
      }
      // What is added here comes before all else that JNA searches, in this order.
      for (String property : new String[] {"jna.library.path", "java.library.path"}) {
        for (String folder : System.getProperty(property, "").split(File.pathSeparator)) {
          if (!folder.isEmpty()) {
            NativeLibrary.addSearchPath(NAME, folder);
          }
        }
      }
      return NativeLibrary.getInstance(NAME, Engine.class.getClassLoader());
    } catch (UnsatisfiedLinkError error) {
      String what = System.mapLibraryName(NAME)
          + " is neither in jna.library.path nor in java.library.path, nor in the system's folders,"
          + " nor in the jar for this machine; the system property " + FILE_PROPERTY
          + " may name the file";
      if (file != null) {
        what = FILE_PROPERTY + "=" + file + " cannot be loaded";
      }
      UnsatisfiedLinkError refusal = new UnsatisfiedLinkError(what + ": " + error.getMessage());
      refusal.initCause(error);
      throw refusal;
    }
  }

  /** C's size_t. */
  public static final class SizeT extends IntegerType {
    private static final long serialVersionUID = 1;

    public SizeT() {
      this(0);
    }

    public SizeT(long value) {
      super(Native.SIZE_T_SIZE, value, true);
    }
  }

  /** By value, wherever it stands. */
  @FieldOrder({"n", "c", "s"})
  public static final class Shape extends Structure implements Structure.ByValue {
    public long n;
    public long c;
    public long s;
  }

  /** By value, wherever it stands. */
  @FieldOrder({"examples", "channels"})
  public static final class Block extends Structure implements Structure.ByValue {
    public long examples;
    public long channels;
  }

  @FieldOrder({"struct_size", "shape", "block", "layout", "data", "param", "activation", "center",
      "given_statistics", "correction", "eps", "param_stride"})
  public static final class Spec extends Structure {
    public SizeT struct_size;
    public Shape shape;
    public Block block;
    public int layout;
    public int data;
    public int param;
    public int activation;
    public int center;
    public int given_statistics;
    public int correction;
    public double eps;
    public long param_stride;
  }

  @FieldOrder({"run", "context", "threads"})
  public static final class Executor extends Structure implements Structure.ByValue {
    public Pointer run;
    public Pointer context;
    public int threads;
  }

  static native String gn_status_string(int status);

  static native Block gn_group_norm(Shape shape, long groups);

  static native Block gn_batch_group_norm(Shape shape, long groups);

  static native Block gn_layer_norm(Shape shape);

  static native Block gn_instance_norm(Shape shape);

  static native Block gn_batch_norm(Shape shape);

  static native Executor gn_pool(int threads);

  static native int gn_plan_make(Spec spec, String target, Pointer plan);

  static native long gn_plan_blocks(Pointer plan);

  static native SizeT gn_plan_workspace_bytes(Pointer plan);

  static native SizeT gn_plan_backward_workspace_bytes(Pointer plan);

  static native int gn_forward(
      Pointer plan, Pointer args, Pointer workspace, SizeT workspaceBytes, Pointer executor);

  static native int gn_backward(
      Pointer plan, Pointer args, Pointer workspace, SizeT workspaceBytes, Pointer executor);
}
