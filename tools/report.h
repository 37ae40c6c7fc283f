// What a call did to a tensor, for people to read.
#ifndef GROUPNORM_TOOLS_REPORT_H
#define GROUPNORM_TOOLS_REPORT_H

#include <groupnorm/groupnorm.hpp>

namespace groupnorm::tools {

// Prints the mean and the standard deviation of each of the first blocks of args.x and args.y, then
// the worst error of args.y; all by the reference. `args` as for verify. False: the error is beyond
// its bound.
bool report(const Spec& spec, const Forward& args);

}  // namespace groupnorm::tools

#endif
