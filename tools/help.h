// The text of --help.
#ifndef GROUPNORM_TOOLS_HELP_H
#define GROUPNORM_TOOLS_HELP_H

#include <CLI/CLI.hpp>
#include <memory>

namespace groupnorm::tools {

// CLI11's format, with lines that end where the terminal does: at COLUMNS, else at the width of the
// terminal that standard output is, else at 80.
std::shared_ptr<CLI::FormatterBase> wrapping_formatter();

}  // namespace groupnorm::tools

#endif
