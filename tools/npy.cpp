#include "npy.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <limits>
#include <optional>
#include <string_view>
#include <system_error>
#include <utility>

#include "command.h"
#include "dtype.h"

namespace groupnorm::tools {
namespace {

namespace fs = std::filesystem;

// https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
constexpr std::string_view kMagic("\x93NUMPY", 6);
constexpr std::size_t kLongestHeader = 10'000;  // numpy.load's own limit

// Elements are taken from the file as they are.
static_assert(std::endian::native == std::endian::little);

// The name that numpy writes, and others that numpy.dtype() takes for the same.
struct Descr {
  std::string_view name;
  std::array<std::string_view, 2> others;
  DType dtype;
};
constexpr Descr kDescrs[] = {{"<f2", {"e", "float16"}, DType::f16},
                             {"<f4", {"f", "float32"}, DType::f32},
                             {"<f8", {"d", "float64"}, DType::f64}};

std::string quote(const fs::path& path) { return "'" + path.string() + "'"; }

[[noreturn]] void refuse(const fs::path& path, const std::string& why) {
  throw BadInput(quote(path) + ": " + why);
}

// Why a header is refused; read_npy puts the file's name before it.
class BadHeader : public BadInput {
 public:
  using BadInput::BadInput;
};

DType parse_descr(std::string_view descr) {
  // '=' and no mark at all stand for the machine's order of bytes, which is '<'.
  const bool marked = descr.starts_with('<') || descr.starts_with('=') || descr.starts_with('|');
  const std::string_view type = marked ? descr.substr(1) : descr;
  for (const Descr& known : kDescrs) {
    if (type == known.name.substr(1) || std::ranges::count(known.others, type) > 0) {
      return known.dtype;
    }
  }
  std::string shown;
  for (const char c : descr) shown += c >= 0x20 && c < 0x7F ? c : '?';
  const std::string dtype = "dtype '" + shown + "' ";
  if (descr.starts_with('>')) {
    throw BadHeader(dtype + "is big-endian; save it with x.astype(x.dtype.newbyteorder('<'))");
  }
  if (descr.find('O') != descr.npos) {
    throw BadHeader(dtype + "is an array of Python objects, which is never loaded");
  }
  throw BadHeader(dtype + "is not float16, float32 or float64");
}

// The header's text: a Python dictionary of exactly 'descr', 'fortran_order' and 'shape'.
class HeaderParser {
 public:
  explicit HeaderParser(std::string_view text) : rest_(text) {}

  struct Header {
    DType dtype;
    std::vector<std::int64_t> shape;
  };

  Header parse() {
    std::optional<DType> dtype;
    std::optional<bool> fortran_order;
    std::optional<std::vector<std::int64_t>> shape;
    expect('{');
    while (!accept('}')) {
      const std::string_view key = string();
      expect(':');
      if (key == "descr" && !dtype) {
        if (peek() == '[') throw BadHeader("has a structured dtype; save one field of it");
        dtype = parse_descr(string());
      } else if (key == "fortran_order" && !fortran_order) {
        fortran_order = boolean();
      } else if (key == "shape" && !shape) {
        shape = tuple();
      } else {
        throw malformed();
      }
      if (accept('}')) break;
      expect(',');
    }
    skip_space();
    if (!rest_.empty() || !dtype || !fortran_order || !shape) throw malformed();
    if (*fortran_order) {
      throw BadHeader("is in Fortran order; save numpy.ascontiguousarray(x)");
    }
    return {*dtype, *shape};
  }

 private:
  static BadHeader malformed() { return BadHeader("has a malformed .npy header"); }

  void skip_space() {
    rest_.remove_prefix(std::min(rest_.find_first_not_of(" \t\r\n"), rest_.size()));
  }
  char peek() {
    skip_space();
    return rest_.empty() ? '\0' : rest_.front();
  }
  bool accept(char c) {
    if (rest_.empty() || peek() != c) return false;
    rest_.remove_prefix(1);
    return true;
  }
  void expect(char c) {
    if (!accept(c)) throw malformed();
  }

  std::string_view string() {
    if (!accept('u')) accept('U');  // as Python 2 marks Unicode
    const char mark = peek();
    if (mark != '\'' && mark != '"') throw malformed();
    const std::size_t end = rest_.find(mark, 1);
    if (end == rest_.npos) throw malformed();
    const std::string_view text = rest_.substr(1, end - 1);
    rest_.remove_prefix(end + 1);
    return text;
  }

  bool boolean() {
    skip_space();
    for (const bool value : {false, true}) {
      const std::string_view word = value ? "True" : "False";
      if (!rest_.starts_with(word)) continue;
      rest_.remove_prefix(word.size());
      return value;
    }
    throw malformed();
  }

  std::int64_t size() {
    if (peek() == '-') throw BadHeader("has a negative size in its shape");
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), value);
    if (error == std::errc::result_out_of_range) throw BadHeader("has a size beyond 2^63 - 1");
    if (error != std::errc{}) throw malformed();
    rest_.remove_prefix(static_cast<std::size_t>(end - rest_.data()));
    accept('L');  // as Python 2 marks a long
    return value;
  }

  // (), (3,), (3, 4), (3, 4,); but (3) is a number.
  std::vector<std::int64_t> tuple() {
    std::vector<std::int64_t> sizes;
    expect('(');
    while (!accept(')')) {
      sizes.push_back(size());
      if (accept(',')) continue;
      if (sizes.size() == 1) throw malformed();
      expect(')');
      break;
    }
    return sizes;
  }

  std::string_view rest_;
};

// Throws BadHeader where the bytes pass 2^63 - 1. As in numpy, a size of 0 does not hide that the
// others do: whoever multiplies some of them later need not check again.
std::int64_t bytes_of(const HeaderParser::Header& header) {
  std::int64_t bytes = detail::size_of(header.dtype);
  bool empty = false;
  for (const std::int64_t size : header.shape) {
    empty = empty || size == 0;
    if (size != 0 && bytes > std::numeric_limits<std::int64_t>::max() / size) {
      throw BadHeader("has shape " + format_shape(header.shape) + ", more than 2^63 bytes");
    }
    bytes *= std::max(size, std::int64_t{1});
  }
  return empty ? 0 : bytes;
}

// Reads a file from its start, and knows how much there is.
class Input {
 public:
  explicit Input(const fs::path& path) : path_(path) {
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (error) refuse(path, error.message());
    if (fs::is_directory(status)) refuse(path, "is a directory");
    if (!fs::is_regular_file(status)) refuse(path, "is not a regular file");
    errno = 0;
    stream_.open(path, std::ios::binary);
    if (!stream_) refuse(path, std::strerror(errno));
    left_ = fs::file_size(path, error);
    if (error) refuse(path, error.message());
  }

  std::uintmax_t left() const { return left_; }

  void read(std::span<std::byte> out) {
    stream_.read(reinterpret_cast<char*>(out.data()), static_cast<std::streamsize>(out.size()));
    if (!stream_) refuse(path_, "cannot be read to its end");
    left_ -= out.size();
  }

  std::string read_text(std::size_t bytes) {
    if (left_ < bytes) throw BadHeader("ends within its .npy header");
    std::string text(bytes, '\0');
    read(std::as_writable_bytes(std::span(text)));
    return text;
  }

 private:
  fs::path path_;
  std::ifstream stream_;
  std::uintmax_t left_ = 0;
};

HeaderParser::Header read_header(Input& input) {
  if (input.left() < kMagic.size() || input.read_text(kMagic.size()) != kMagic) {
    throw BadHeader("is not a .npy file");
  }
  const std::string version = input.read_text(2);
  const int major = static_cast<unsigned char>(version[0]);
  if (major < 1 || major > 3 || version[1] != 0) {
    throw BadHeader("has .npy format version " + std::to_string(major) + "." +
                    std::to_string(static_cast<unsigned char>(version[1])) +
                    "; known are 1.0, 2.0 and 3.0");
  }
  const std::string length_bytes = input.read_text(major == 1 ? 2 : 4);
  std::size_t length = 0;
  for (std::size_t i = length_bytes.size(); i-- > 0;) {
    length = length << 8 | static_cast<unsigned char>(length_bytes[i]);
  }
  if (length > kLongestHeader) {
    throw BadHeader("has a header of " + std::to_string(length) + " bytes; at most " +
                    std::to_string(kLongestHeader) + " are read");
  }
  const std::string text = input.read_text(length);
  return HeaderParser(text).parse();
}

Npy read(const fs::path& path) {
  Input input(path);
  HeaderParser::Header header = read_header(input);
  const auto bytes = static_cast<std::uintmax_t>(bytes_of(header));
  if (input.left() < bytes) {
    throw BadHeader("holds " + std::to_string(input.left()) + " bytes of data; its shape " +
                    format_shape(header.shape) + " needs " + std::to_string(bytes));
  }
  require_memory(static_cast<double>(bytes), quote(path));
  Npy npy{header.dtype, std::move(header.shape), testing::Buffer(bytes)};
  input.read({npy.data.data(), npy.data.size()});
  return npy;
}

// As numpy writes it: padded by spaces so that the data start at a multiple of 64.
std::string header_of(DType dtype, std::span<const std::int64_t> shape) {
  const auto* const descr = std::find_if(std::begin(kDescrs), std::end(kDescrs),
                                         [=](const Descr& known) { return known.dtype == dtype; });
  if (descr == std::end(kDescrs)) throw BadInput("NumPy has no such dtype as bf16");
  std::string sizes;
  for (const std::int64_t size : shape) {
    sizes += (sizes.empty() ? "" : ", ") + std::to_string(size);
  }
  if (shape.size() == 1) sizes += ',';
  std::string text = "{'descr': '" + std::string(descr->name) +
                     "', 'fortran_order': False, 'shape': (" + sizes + "), }";
  const std::size_t before = kMagic.size() + 4;  // version and length
  // Room for the first size to grow to 20 digits, as numpy leaves it for appending.
  if (!shape.empty()) text.append(21 - std::to_string(shape[0]).size(), ' ');
  text.append(63 - (before + text.size()) % 64, ' ');
  text += '\n';
  const std::size_t length = text.size();
  const char preamble[] = {1, 0, static_cast<char>(length & 0xFF), static_cast<char>(length >> 8)};
  return std::string(kMagic) + std::string(preamble, sizeof(preamble)) + text;
}

}  // namespace

Npy read_npy(const fs::path& path) {
  try {
    return read(path);
  } catch (const BadHeader& error) {
    refuse(path, error.what());
  }
}

std::string format_shape(std::span<const std::int64_t> shape) {
  std::string text;
  for (const std::int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

void write_npy(PendingFile& file, DType dtype, std::span<const std::int64_t> shape,
               std::span<const std::byte> data) {
  const std::string header = header_of(dtype, shape);
  file.write(std::as_bytes(std::span(header)));
  file.write(data);
}

}  // namespace groupnorm::tools
