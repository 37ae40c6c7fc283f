#include "help.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>

#include "number.h"

namespace groupnorm::tools {
namespace {

constexpr std::size_t kLeastColumns = 40;  // below, there is no room beside the names of options

std::size_t columns() {
  std::size_t found = 80;
  winsize window{};
  const char* const text = std::getenv("COLUMNS");
  if (const auto asked = parse_number<std::size_t>(text != nullptr ? text : "");
      asked.value_or(0)) {
    found = *asked;
  } else if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 0) {
    found = window.ws_col;
  }
  return std::max(found, kLeastColumns);
}

// `line` in lines of at most `width`, as far as its words allow; those behind the first begin at
// `indent`. A word ends at a space; among the choices of an option behind a '|', too.
std::string wrap(std::string_view line, std::size_t indent, std::size_t width) {
  const std::size_t first = line.find_first_not_of(' ');
  const char* const ends = first > 0 && first < line.size() && line[first] == '-' ? " |" : " ";
  std::string text(line.substr(0, indent));
  std::size_t column = indent;
  for (std::size_t at = text.size(); at < line.size();) {
    const std::size_t end = std::min(line.find_first_of(ends, at), line.size() - 1) + 1;
    const std::string_view word = line.substr(at, end - at);
    const std::size_t visible = word.size() - (word.ends_with(' ') ? 1 : 0);
    if (column > indent && column + visible > width) {
      if (text.ends_with(' ')) text.pop_back();
      text.append("\n").append(indent, ' ');
      column = indent;
    }
    text += word;
    column += word.size();
    at = end;
  }
  return text;
}

class WrappingFormatter : public CLI::Formatter {
 public:
  explicit WrappingFormatter(std::size_t width) : width_(width) {
    column_width(std::min<std::size_t>(30, width / 3));
  }
  std::string make_help(const CLI::App* app, std::string name,
                        CLI::AppFormatMode mode) const override {
    std::istringstream lines(CLI::Formatter::make_help(app, std::move(name), mode));
    std::string text;
    for (std::string line; std::getline(lines, line);) {
      text += wrap(line, line.starts_with(' ') ? column_width_ : 0, width_) + "\n";
    }
    return text;
  }

 private:
  std::size_t width_;
};

}  // namespace

std::shared_ptr<CLI::FormatterBase> wrapping_formatter() {
  return std::make_shared<WrappingFormatter>(columns());
}

}  // namespace groupnorm::tools
