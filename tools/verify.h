// The engine's result against the reference.
#ifndef GROUPNORM_TOOLS_VERIFY_H
#define GROUPNORM_TOOLS_VERIFY_H

#include <groupnorm/groupnorm.hpp>

#include "testing/cases.h"

namespace groupnorm::tools {

// A tensor beyond so many elements is checked in blocks spread evenly over it, one at least: the
// reference keeps two doubles an element, and takes seconds for this many.
inline constexpr std::int64_t kMostVerified = std::int64_t{1} << 26;

// What is in args.y against the reference of args.x, which the call has not overwritten.
testing::Comparison verify(const Spec& spec, const Forward& args);

// Bytes that make_data, a call and verify need.
double memory_needed(const Spec& spec);

// Bytes that make_gradient_data, a call and reference_backward of the whole tensor need: gradients
// of gamma and beta are sums over it.
double gradient_memory_needed(const Spec& spec);

}  // namespace groupnorm::tools

#endif
