import io.github.groupnorm.BatchGroupNormalization

import scala.util.Random

/** The matrix x [16, 32] of doubles is normalized in 8 groups of 4 columns, each by the mean and the
  * variance over all its rows and columns (m = 16 * 4), the variance divided by m - 1.
  *
  * (The Scala program of softwarepatternslexicon.com, "Group Normalization".)
  */
object BatchGroupNormUnbiased {
  def main(arguments: Array[String]): Unit = {
    val random = new Random(1)
    val input = Array.fill(16, 32)(random.nextDouble())

    val norm = new BatchGroupNormalization(8)
    norm.setCorrection(1)
    val output = norm.forward(input)

    def groups(matrix: Array[Array[Double]]) = matrix.transpose.grouped(4).map(_.flatten).toSeq
    val steps = groups(input).zip(groups(output)).map { case (x, y) => worst(x, y, norm.getEpsilon) }
    val largest = steps.reduce((a, b) => math.max(a, b)) // NaN stays
    val right = largest <= 10 // the loops round too, in the same precision
    println(f"groups of columns over all rows, m - 1: off by $largest%.2f steps of the type at most " +
      f"(10 allowed): ${if (right) "ok" else "WRONG"}")
    sys.exit(if (right) 0 else 1)
  }

  /** How far y is from x normalized as one block, in steps of double. */
  private def worst(x: Array[Double], y: Array[Double], epsilon: Double): Double = {
    val mean = x.sum / x.length
    val variance = x.map(value => math.pow(value - mean, 2)).sum / (x.length - 1)
    val expected = x.map(value => (value - mean) / math.sqrt(variance + epsilon))
    expected.zip(y)
      .map { case (e, actual) => math.abs(actual - e) / (math.ulp(1.0) * (1 + math.abs(e))) }
      .reduce((a, b) => math.max(a, b))
  }
}
