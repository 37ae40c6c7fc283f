// What is timed: calls of one direction on random data, and whether their results are right.
#ifndef GROUPNORM_TOOLS_SUBJECT_H
#define GROUPNORM_TOOLS_SUBJECT_H

#include <groupnorm/groupnorm.hpp>

#include <functional>
#include <memory>
#include <vector>

#include "contest.h"
#include "testing/cases.h"

namespace groupnorm::tools {

// How a call is made. The plan is of the subject's Spec, or of one that differs in its activation.
struct Way {
  Plan plan;
  Executor executor;
  bool in_place = false;  // y == x, or dx == dy
};

// The data of one case.
class Subject {
 public:
  virtual ~Subject() = default;
  virtual const char* direction() const = 0;
  // What a set holds before its first call. They are the subject's.
  virtual std::vector<const testing::Buffer*> tensors() const = 0;
  // A call, with a workspace of its own. The subject must stay.
  virtual std::function<void(Set)> call(const Way& way) const = 0;
  // What the first call on `set` wrote, against the reference. A forward of more than kMostVerified
  // elements is checked in some of its blocks, all else in whole.
  virtual testing::Comparison check(Set set, bool in_place) = 0;
};

// Throws BadInput where the machine has too little memory for the data, the reference and the sets
// of a Contest. `asked` is one that Plan::make accepts, and not empty.
std::unique_ptr<Subject> make_subject(const testing::Case& asked, bool backward, bool hot);

}  // namespace groupnorm::tools

#endif
