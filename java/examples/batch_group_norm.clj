;; 512 numbers from [0, 32), a matrix of 16 rows and 32 columns, are normalized in 8 groups of 4
;; columns, each by the mean and the variance over all its rows and columns, the variance divided by m.
;;
;; (The Clojure program of softwarepatternslexicon.com, "Group Normalization".)
(import '(io.github.groupnorm BatchGroupNormalization)
        '(java.util Random))

(defn group-normalize
  "input, a matrix of doubles, in num-groups groups of columns over all rows."
  [^"[[D" input num-groups epsilon]
  (.forward (BatchGroupNormalization. (int num-groups) (double epsilon)) input))

(defn columns-of
  "The numbers of `size` columns from `start` on, row by row."
  [matrix start size]
  (for [row matrix, column (range start (+ start size))] (aget ^doubles row column)))

(defn steps-off
  "How far ys are from xs normalized as one block, in steps of double."
  [xs ys epsilon]
  (let [m (count xs)
        mean (/ (reduce + xs) m)
        variance (/ (reduce + (map #(Math/pow (- % mean) 2) xs)) m)]
    (reduce max
            (map (fn [x y]
                   (let [expected (/ (- x mean) (Math/sqrt (+ variance epsilon)))]
                     (/ (Math/abs (double (- y expected)))
                        (* (Math/ulp 1.0) (inc (Math/abs (double expected)))))))
                 xs ys))))

(let [random (Random. 1)
      input (into-array (repeatedly 16 (fn [] (double-array (repeatedly 32 #(* 32 (.nextDouble random)))))))
      output (group-normalize input 8 1e-5)
      steps (reduce max (for [start (range 0 32 4)]
                          (steps-off (columns-of input start 4) (columns-of output start 4) 1e-5)))
      right (<= steps 10)]  ; the loops round too, in the same precision
  (println (format "groups of columns over all rows, m: off by %.2f steps of the type at most (10 allowed): %s"
                   steps (if right "ok" "WRONG")))
  (System/exit (if right 0 1)))
