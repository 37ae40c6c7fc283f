import io.github.groupnorm.GroupNormalization;

/** One call, to see whether the library is found. */
final class Once {
  private Once() {}

  public static void main(String[] arguments) {
    float[][][] y = new GroupNormalization(1).forward(new float[][][] {{{1, 3}}});
    System.out.println(y[0][0][0] + " " + y[0][0][1]);
  }
}
