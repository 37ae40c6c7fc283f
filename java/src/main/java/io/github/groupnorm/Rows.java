package io.github.groupnorm;

import java.nio.ByteBuffer;
import java.nio.DoubleBuffer;
import java.nio.FloatBuffer;
import java.util.List;

/**
 * What is done to the rows of nested arrays.
 *
 * @param <R> a row: {@code float[]} or {@code double[]}
 */
interface Rows<R> {
  int length(R row);

  R copy(R row);

  int elementBytes();

  /** Puts the rows one behind the other. */
  void put(List<R> rows, ByteBuffer memory);

  /** Fills the rows with what lies one behind the other. */
  void get(List<R> rows, ByteBuffer memory);

  Tensor tensor(ByteBuffer memory, int... shape);

  Rows<float[]> OF_FLOATS = new Rows<>() {
    @Override
    public int length(float[] row) {
      return row.length;
    }

    @Override
    public float[] copy(float[] row) {
      return row.clone();
    }

    @Override
    public int elementBytes() {
      return Float.BYTES;
    }

    @Override
    public void put(List<float[]> rows, ByteBuffer memory) {
      FloatBuffer floats = memory.asFloatBuffer();
      for (float[] row : rows) {
        floats.put(row);
      }
    }

    @Override
    public void get(List<float[]> rows, ByteBuffer memory) {
      FloatBuffer floats = memory.asFloatBuffer();
      for (float[] row : rows) {
        floats.get(row);
      }
    }

    @Override
    public Tensor tensor(ByteBuffer memory, int... shape) {
      return Tensor.of(memory.asFloatBuffer(), shape);
    }
  };

  Rows<double[]> OF_DOUBLES = new Rows<>() {
    @Override
    public int length(double[] row) {
      return row.length;
    }

    @Override
    public double[] copy(double[] row) {
      return row.clone();
    }

    @Override
    public int elementBytes() {
      return Double.BYTES;
    }

    @Override
    public void put(List<double[]> rows, ByteBuffer memory) {
      DoubleBuffer doubles = memory.asDoubleBuffer();
      for (double[] row : rows) {
        doubles.put(row);
      }
    }

    @Override
    public void get(List<double[]> rows, ByteBuffer memory) {
      DoubleBuffer doubles = memory.asDoubleBuffer();
      for (double[] row : rows) {
        doubles.get(row);
      }
    }

    @Override
    public Tensor tensor(ByteBuffer memory, int... shape) {
      return Tensor.of(memory.asDoubleBuffer(), shape);
    }
  };
}
