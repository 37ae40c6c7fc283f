/**
 * Group normalization and its family on the CPU, by the groupnorm engine.
 *
 * <pre>{@code
 * GroupNormalization norm = new GroupNormalization(32, 1e-5f);
 * float[][][] y = norm.forward(x);                 // arrays [N][C][S]: copied there and back
 * norm.forward(in, out, n, c, s);                  // direct buffers: no copy
 *
 * Tensor t = Tensor.of(pixels, 2, 320, 64, 64).withLayout(Layout.CHANNELS_LAST);
 * norm.forward(t, t);                              // in place
 * }</pre>
 *
 * <p>A tensor is [n examples, c channels, s positions]. A normalization is which examples and which
 * channels share one mean and one variance (a block), always over all positions:
 *
 * <pre>{@code
 * xhat = (x - mean) / sqrt(variance + epsilon)
 * y    = activation(gamma * xhat + beta)
 * }</pre>
 *
 * <p><b>Errors.</b> What cannot be computed is refused before anything is written, by an {@link
 * IllegalArgumentException} that names the argument, its value and the rule. A reference that must
 * not be null and is gives a {@link NullPointerException}. Where the engine's library cannot be
 * loaded, the first use of a layer throws an {@link UnsatisfiedLinkError} that says where it was
 * looked for.
 *
 * <p><b>The library</b> {@code libgroupnorm.so} is taken from the first place that has it: the file
 * that the system property {@code groupnorm.library} names; the folders of {@code
 * jna.library.path}, then of {@code java.library.path}; where the system looks; the jar.
 *
 * <p><b>Memory.</b> Nothing is to be closed. What a layer holds outside of the heap is released
 * with the layer.
 */
package io.github.groupnorm;
