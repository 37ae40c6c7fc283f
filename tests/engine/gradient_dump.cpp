// The gradients of the reference for a program that has an oracle of its own:
//
//   gradient_dump NORM GROUPS SHAPE LAYOUT ACTIVATION CORRECTION EPS PARAM_STRIDE
//                 [SEQUENCE [LENGTH...]]
//
// reads x, dy, gamma and beta from standard input, writes dx, dgamma and dbeta to standard output:
// all as contiguous float64, gamma and its like with what lies between their rows. With SEQUENCE
// there are neighbours, too: it reads skip, shift, residual, scale, offset and dsum behind the
// rest, and writes dresidual, dshift, dscale and doffset.
#include <groupnorm/groupnorm.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "reference.h"
#include "testing/cases.h"

namespace groupnorm::testing {
namespace {

Norm norm_of(const std::string& name) {
  for (const Norm& norm : norms()) {
    if (norm.name == name) return norm;
  }
  throw std::invalid_argument(name);
}

Spec parse(const std::vector<std::string>& arguments) {
  const Norm norm = norm_of(arguments.at(0));
  const std::optional<Shape> shape = parse_shape(arguments.at(2));
  if (!shape) throw std::invalid_argument(arguments.at(2));
  return {.shape = *shape,
          .block = norm.block(*shape, std::stoll(arguments.at(1))),
          .layout = from_string<Layout>(arguments.at(3)).value(),
          .data = DType::f64,
          .param = DType::f64,
          .activation = from_string<Activation>(arguments.at(4)).value(),
          .center = norm.center,
          .correction = std::stoi(arguments.at(5)),
          .eps = std::stod(arguments.at(6)),
          .param_stride = std::stoll(arguments.at(7)),
          .sequence = arguments.size() > 8 ? std::stoll(arguments[8]) : 1};
}

std::vector<double> read(std::int64_t count) {
  std::vector<double> values(static_cast<std::size_t>(count));
  if (std::fread(values.data(), sizeof(double), values.size(), stdin) != values.size()) {
    throw std::runtime_error("standard input is too short");
  }
  return values;
}

void write(std::vector<double> values, std::int64_t count) {
  values.resize(static_cast<std::size_t>(count));
  if (std::fwrite(values.data(), sizeof(double), values.size(), stdout) != values.size()) {
    throw std::runtime_error("standard output");
  }
}

void dump(const Spec& spec, bool neighbours, const std::vector<std::int64_t>& lengths) {
  const auto [n, c, s] = spec.shape;
  const std::int64_t elements = n * c * s, in_rows = n / spec.sequence * c;
  const std::int64_t params = spec.param_stride == 0 ? c : n / spec.sequence * spec.param_stride;
  const auto optional = [&](std::int64_t count) {
    return neighbours ? read(count) : std::vector<double>();
  };
  const std::vector<double> x = read(elements), dy = read(elements), gamma = read(params),
                            beta = read(params), skip = optional(elements),
                            shift = optional(in_rows), residual = optional(elements),
                            scale = optional(in_rows), offset = optional(in_rows),
                            dsum = optional(elements);
  const std::int64_t* const valid = lengths.empty() ? nullptr : lengths.data();
  const auto forward = detail::reference_forward(spec, {.x = x.data(),
                                                        .gamma = gamma.data(),
                                                        .beta = beta.data(),
                                                        .skip = skip.data(),
                                                        .shift = shift.data(),
                                                        .residual = residual.data(),
                                                        .scale = scale.data(),
                                                        .offset = offset.data(),
                                                        .lengths = valid});
  double asked = 0;  // not written to
  const auto gradient = detail::reference_backward(spec, {.x = x.data(),
                                                          .dy = dy.data(),
                                                          .gamma = gamma.data(),
                                                          .beta = beta.data(),
                                                          .mean = forward.mean.data(),
                                                          .rstd = forward.rstd.data(),
                                                          .skip = skip.data(),
                                                          .shift = shift.data(),
                                                          .residual = residual.data(),
                                                          .scale = scale.data(),
                                                          .offset = offset.data(),
                                                          .lengths = valid,
                                                          .dsum = dsum.data(),
                                                          .dresidual = &asked});
  write(gradient.dx, elements);
  write(gradient.dgamma, params);
  write(gradient.dbeta, params);
  if (!neighbours) return;
  write(gradient.dresidual, elements);
  write(gradient.dshift, in_rows);
  write(gradient.dscale, in_rows);
  write(gradient.doffset, in_rows);
}

}  // namespace
}  // namespace groupnorm::testing

int main(int argc, char** argv) try {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  std::vector<std::int64_t> lengths;
  for (std::size_t i = 9; i < arguments.size(); ++i) lengths.push_back(std::stoll(arguments[i]));
  groupnorm::testing::dump(groupnorm::testing::parse(arguments), arguments.size() > 8, lengths);
  return EXIT_SUCCESS;
} catch (const std::exception& error) {
  std::fprintf(stderr, "gradient_dump: %s\n", error.what());
  return EXIT_FAILURE;
}
