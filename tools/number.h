// Options and environment variables whose value is a number: decimal, in range, or refused. (CLI11
// takes 010 for 8, 0x10, nan, and -1 for the largest of std::uint64_t.)
#ifndef GROUPNORM_TOOLS_NUMBER_H
#define GROUPNORM_TOOLS_NUMBER_H

#include <CLI/CLI.hpp>
#include <charconv>
#include <concepts>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

namespace groupnorm::tools {

// All of `text` as a decimal number, whatever the locale; nothing for anything else.
template <class Number>
std::optional<Number> parse_number(std::string_view text) {
  Number value{};
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  return error == std::errc{} && stop == end ? std::optional(value) : std::nullopt;
}

// As short as it can be read back.
template <class Number>
std::string format_number(Number value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof(text), value).ptr};
}

// What a number must be, both ends included.
template <class Number>
struct Range {
  Number least = std::numeric_limits<Number>::lowest();
  Number most = std::numeric_limits<Number>::max();

  bool holds(Number value) const { return value >= least && value <= most; }  // no NaN
  std::string rule() const {
    const bool from = std::unsigned_integral<Number> || least > Range().least;
    const bool to = std::unsigned_integral<Number> || most < Range().most;
    return std::string("must be ") +
           (std::integral<Number> ? "a whole number" : "a finite number") +
           (from && to ? " from "
            : from     ? " of at least "
                       : "") +
           (from ? format_number(least) : "") + (to ? " to " + format_number(most) : "") +
           (from || to              ? ""
            : std::integral<Number> ? " of 64 bits"
                                    : "");
  }
};

// An option whose value is a number; `value` may be a std::optional, which has no default to show.
template <class Number, class Value>
CLI::Option* add_number(CLI::App& app, const std::string& flag, Value* value,
                        const Range<Number>& range, const std::string& help) {
  const auto assign = [=](const std::string& text) {
    const std::optional<Number> number = parse_number<Number>(text);
    if (!number || !range.holds(*number)) {
      throw CLI::ValidationError(flag, range.rule() + "; got '" + text + "'");
    }
    *value = *number;
  };
  CLI::Option* const option = app.add_option_function<std::string>(flag, assign, help)
                                  ->type_name(std::integral<Number> ? "INT" : "FLOAT");
  if constexpr (std::same_as<Number, Value>) option->default_str(format_number(*value));
  return option;
}

}  // namespace groupnorm::tools

#endif
