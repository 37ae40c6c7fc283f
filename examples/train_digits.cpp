// Training: a small network learns to read handwritten digits (data/README.md) by stochastic
// gradient descent.
//
//   image -> convolution -> GN, SiLU -> 2x2 means -> convolution -> GN, SiLU -> linear -> softmax
//
// A batch is two images. Batch normalization would have their statistics alone to go by; group
// normalization takes each image's own. So it learns from batches of any size, needs no running
// statistics, and gives an image the same answer alone, in a batch, in training and after it.
//
// Run it where data/ is, or with that directory as argument.
#include <groupnorm/layers.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "plain.h"

namespace {

using groupnorm::Tensor;
using Bytes = std::vector<std::uint8_t>;

constexpr std::int64_t kSide = 8;  // of an image, in pixels
constexpr std::int64_t kPixels = kSide * kSide;
constexpr std::int64_t kClasses = 10;
constexpr std::size_t kTestEvery = 5;  // one image of so many is for the test, not for training
constexpr std::size_t kBatch = 2;
constexpr int kEpochs = 4;
constexpr double kRate = 0.02;

// One step of gradient descent; the slopes start again from 0.
template <class T>
void descend(std::span<T> values, std::span<T> slopes) {
  for (std::size_t i = 0; i < values.size(); ++i) values[i] -= static_cast<T>(kRate) * slopes[i];
  std::ranges::fill(slopes, T{0});
}

// Which inputs, weights and outputs of a layer belong together: its f(i, w, o) is called for each
// product x[i] * weight[w] that y[o] sums up.

// 3x3, zeros around the image: x [n, in, side, side] -> y [n, out, side, side].
struct Convolution {
  std::int64_t in, out, side;

  std::int64_t inputs() const { return 9 * in; }  // of an output
  std::int64_t weights() const { return out * inputs(); }
  std::vector<std::int64_t> shape(std::int64_t n) const { return {n, out, side, side}; }

  template <class F>
  void for_each_product(std::int64_t n, F&& f) const {
    for (std::int64_t planes = 0; planes < n * out * in; ++planes) {
      const std::int64_t to = planes / in, from = to / out * in + planes % in;
      for (std::int64_t tap = 0; tap < 9; ++tap) {
        const std::int64_t w = planes % (out * in) * 9 + tap;
        const std::int64_t down = tap / 3 - 1, right = tap % 3 - 1;
        for (std::int64_t row = std::max<std::int64_t>(0, -down); row < std::min(side, side - down);
             ++row) {
          const std::int64_t o = (to * side + row) * side;
          const std::int64_t i = (from * side + row + down) * side + right;
          for (std::int64_t col = std::max<std::int64_t>(0, -right);
               col < std::min(side, side - right); ++col) {
            f(i + col, w, o + col);
          }
        }
      }
    }
  }
};

// x [n, ...] of `in` elements an image -> y [n, out].
struct Linear {
  std::int64_t in, out;

  std::int64_t inputs() const { return in; }
  std::int64_t weights() const { return out * in; }
  std::vector<std::int64_t> shape(std::int64_t n) const { return {n, out}; }

  template <class F>
  void for_each_product(std::int64_t n, F&& f) const {
    for (std::int64_t o = 0; o < n * out; ++o) {
      for (std::int64_t i = 0; i < in; ++i) f(o / out * in + i, o % out * in + i, o);
    }
  }
};

template <class Products>
class Weighted {
 public:
  explicit Weighted(Products products)
      : products_(products),
        weight_(static_cast<std::size_t>(products.weights())),
        dweight_(weight_.size()) {
    const auto inputs = static_cast<double>(products.inputs());
    fill_normal(std::span(weight_), /*mean=*/0, /*deviation=*/std::sqrt(2 / inputs));
  }

  Tensor forward(Tensor x) {
    x_ = std::move(x);
    const std::int64_t n = x_.shape()[0];
    Tensor y(products_.shape(n));
    const float* const from = x_.data<float>().data();
    float* const to = y.data<float>().data();
    products_.for_each_product(
        n, [&, weight = weight_.data()](auto i, auto w, auto o) { to[o] += from[i] * weight[w]; });
    return y;
  }

  Tensor backward(const Tensor& dy) {
    Tensor dx(x_.shape());
    const float* const x = std::as_const(x_).data<float>().data();
    const float* const slope = dy.data<float>().data();
    float* const to = dx.data<float>().data();
    products_.for_each_product(x_.shape()[0], [&, weight = weight_.data(),
                                               dweight = dweight_.data()](auto i, auto w, auto o) {
      dweight[w] += x[i] * slope[o];
      to[i] += weight[w] * slope[o];
    });
    return dx;
  }

  void step() { descend(std::span(weight_), std::span(dweight_)); }

 private:
  Products products_;
  std::vector<float> weight_, dweight_;
  Tensor x_{{0, 0}};
};

// The means of 2x2 pixels, of images of kSide.
struct Means {
  static std::size_t output_of(std::size_t i) {
    constexpr auto side = static_cast<std::size_t>(kSide);
    return i / side / 2 * (side / 2) + i % side / 2;
  }
  static Tensor forward(const Tensor& x) {
    Tensor y({x.shape()[0], x.shape()[1], kSide / 2, kSide / 2});
    const auto to = y.data<float>();
    for (std::size_t i = 0; const float value : x.data<float>()) to[output_of(i++)] += value / 4;
    return y;
  }
  static Tensor backward(const Tensor& dy) {
    Tensor dx({dy.shape()[0], dy.shape()[1], kSide, kSide});
    const auto slope = dy.data<float>();
    for (std::size_t i = 0; float& value : dx.data<float>()) value = slope[output_of(i++)] / 4;
    return dx;
  }
};

struct Network {
  Weighted<Convolution> conv1{{.in = 1, .out = 8, .side = kSide}};
  groupnorm::GroupNormalization norm1{/*num_groups=*/2, /*num_channels=*/8};
  Weighted<Convolution> conv2{{.in = 8, .out = 16, .side = kSide / 2}};
  groupnorm::GroupNormalization norm2{/*num_groups=*/4, /*num_channels=*/16};
  Weighted<Linear> linear{{.in = 16 * kPixels / 4, .out = kClasses}};

  Network() { norm1.options.activation = norm2.options.activation = groupnorm::Activation::silu; }

  // x [n, 1, 8, 8] -> logits [n, 10]
  Tensor forward(Tensor x) {
    Tensor small = Means::forward(norm1.forward(conv1.forward(std::move(x))));
    return linear.forward(norm2.forward(conv2.forward(std::move(small))));
  }
  void backward(const Tensor& dlogits) {
    const Tensor dsmall = conv2.backward(norm2.backward(linear.backward(dlogits)));
    conv1.backward(norm1.backward(Means::backward(dsmall)));
  }
  void step() {
    conv1.step();
    conv2.step();
    linear.step();
    for (auto* const norm : {&norm1, &norm2}) {
      descend(norm->gamma(), norm->dgamma());
      descend(norm->beta(), norm->dbeta());
    }
  }
};

// The mean over the batch of -log softmax(logits)[label]. Puts its slope in the place of logits.
double cross_entropy(Tensor* logits, std::span<const std::uint8_t> labels) {
  double loss = 0;
  const auto n = static_cast<float>(labels.size());
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const auto row = logits->data<float>().subspan(i * kClasses, kClasses);
    const float largest = std::ranges::max(row);
    float sum = 0;
    for (float& z : row) sum += z = std::exp(z - largest);
    for (float& z : row) z /= sum;
    float& answer = row[labels[i]];
    loss -= std::log(answer) / n;
    answer -= 1;
    for (float& z : row) z /= n;
  }
  return loss;
}

struct Digits {
  Bytes pixels, labels;

  Tensor images(std::span<const std::size_t> chosen) const {
    Tensor x({static_cast<std::int64_t>(chosen.size()), 1, kSide, kSide});
    auto to = x.data<float>().begin();
    for (const std::size_t image : chosen) {
      const auto first = pixels.begin() + static_cast<std::ptrdiff_t>(image) * kPixels;
      to = std::transform(first, first + kPixels, to,
                          [](std::uint8_t ink) { return static_cast<float>(ink) / 16; });
    }
    return x;
  }
  Bytes labels_of(std::span<const std::size_t> chosen) const {
    Bytes result;
    for (const std::size_t image : chosen) result.push_back(labels[image]);
    return result;
  }
};

// The elements of a .npy file of bytes; its header's length stands in two bytes from the eighth on.
Bytes read_npy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const Bytes all(std::istreambuf_iterator<char>(file), {});
  if (all.size() < 10) throw std::runtime_error("cannot read " + path);
  const std::size_t header = 10 + all[8] + std::size_t{256} * all[9];
  if (all.size() < header) throw std::runtime_error(path + " is cut short");
  return Bytes(all.begin() + static_cast<std::ptrdiff_t>(header), all.end());
}

Digits read_digits(const std::string& directory) {
  Digits digits{read_npy(directory + "/digits.npy"), read_npy(directory + "/digits_labels.npy")};
  if (digits.labels.empty() || digits.pixels.size() != digits.labels.size() * kPixels) {
    throw std::runtime_error(directory + ": images and labels do not fit together");
  }
  return digits;
}

// Goes once through the images in the given order. The mean loss.
double train(Network* network, const Digits& digits, std::span<const std::size_t> order) {
  double loss = 0;
  std::size_t batches = 0;
  for (; !order.empty(); ++batches) {
    const auto batch = order.first(std::min(kBatch, order.size()));
    order = order.subspan(batch.size());
    Tensor logits = network->forward(digits.images(batch));
    loss += cross_entropy(&logits, digits.labels_of(batch));
    network->backward(logits);
    network->step();
  }
  return loss / static_cast<double>(batches);
}

// The share of the images whose largest logit is their label's.
double accuracy(Network* network, const Digits& digits, std::span<const std::size_t> images) {
  const Tensor logits = network->forward(digits.images(images));
  int right = 0;
  for (std::size_t i = 0; i < images.size(); ++i) {
    const auto row = logits.data<float>().subspan(i * kClasses, kClasses);
    const auto answer = std::ranges::max_element(row) - row.begin();
    right += answer == digits.labels[images[i]] ? 1 : 0;
  }
  return right / static_cast<double>(images.size());
}

int run(const std::string& directory) {
  const Digits digits = read_digits(directory);
  std::vector<std::size_t> training, test;
  for (std::size_t image = 0; image < digits.labels.size(); ++image) {
    (image % kTestEvery == 0 ? test : training).push_back(image);
  }

  Network network;
  std::mt19937_64 random(1);
  double first_loss = 0, loss = 0, right = 0;
  for (int epoch = 1; epoch <= kEpochs; ++epoch) {
    std::ranges::shuffle(training, random);
    loss = train(&network, digits, training);
    right = accuracy(&network, digits, test);
    if (epoch == 1) first_loss = loss;
    std::printf("epoch %d: training loss %.4f, %.1f %% of the %zu test images read right\n", epoch,
                loss, 100 * right, test.size());
  }
  const bool learned = loss < first_loss && right > 0.9;
  std::printf("%s\n", learned ? "learned: ok" : "NOT LEARNED");
  return learned ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc > 1 ? argv[1] : "data");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
