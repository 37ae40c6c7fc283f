package io.github.groupnorm;

import com.sun.jna.Native;
import com.sun.jna.Pointer;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;

/**
 * Memory outside of the heap. It is a direct buffer's, so that the collector knows how much there
 * is, and releases it with its owner.
 */
final class Direct {
  final ByteBuffer bytes;
  final Pointer pointer;
  final long address;

  Direct(long size) {
    if (size > Integer.MAX_VALUE) {
      throw new OutOfMemoryError("a call needs " + size + " bytes; a buffer holds less than 2^31");
    }
    bytes = ByteBuffer.allocateDirect((int) size).order(ByteOrder.nativeOrder());
    pointer = Native.getDirectBufferPointer(bytes);
    address = Pointer.nativeValue(pointer);
  }

  /** `memory` where it has `size` bytes, else new memory. */
  static Direct atLeast(long size, Direct memory) {
    return memory != null && memory.bytes.capacity() >= size ? memory : new Direct(size);
  }

  void putDoubles(int offset, double[] values) {
    bytes.position(offset);
    bytes.asDoubleBuffer().put(values);
  }

  void putFloats(int offset, double[] values) {
    for (int i = 0; i < values.length; ++i) {
      bytes.putFloat(offset + i * Float.BYTES, (float) values[i]);
    }
  }

  double[] doubles(int offset, int count) {
    double[] values = new double[count];
    bytes.position(offset);
    bytes.asDoubleBuffer().get(values);
    return values;
  }

  double[] floats(int offset, int count) {
    double[] values = new double[count];
    for (int i = 0; i < count; ++i) {
      values[i] = bytes.getFloat(offset + i * Float.BYTES);
    }
    return values;
  }
}
