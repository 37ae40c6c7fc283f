package io.github.groupnorm;

/** How [n, c, s] lies in memory. The order is that of C. */
public enum Layout {
  /** N, C, S: the positions of a channel lie side by side. */
  CHANNELS_FIRST,
  /** N, S, C: the channels of a position lie side by side. */
  CHANNELS_LAST
}
