// One JSON object on one line: enough for results, and no more.
#ifndef GROUPNORM_TOOLS_JSON_H
#define GROUPNORM_TOOLS_JSON_H

#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>

namespace groupnorm::tools {

inline std::string json(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out + '"';
}
inline std::string json(const char* text) { return json(std::string_view(text)); }
inline std::string json(bool value) { return value ? "true" : "false"; }
inline std::string json(std::nullptr_t) { return "null"; }
template <std::integral T>
std::string json(T value) {
  return std::to_string(value);
}
inline std::string json(double value) {
  if (!std::isfinite(value)) return "null";
  char text[32];
  std::snprintf(text, sizeof(text), "%.6g", value);
  return text;
}
inline std::string json(std::span<const char* const> values) {
  std::string out;
  for (const char* value : values) out += (out.empty() ? "" : ", ") + json(value);
  return "[" + out + "]";
}

class JsonObject {
 public:
  template <class T>
  JsonObject& add(const char* key, const T& value) {
    text_ += (text_.empty() ? "" : ", ") + json(key) + ": " + json(value);
    return *this;
  }
  std::string text() const { return "{" + text_ + "}"; }

 private:
  std::string text_;
};

inline std::string json(const JsonObject& object) { return object.text(); }

}  // namespace groupnorm::tools

#endif
