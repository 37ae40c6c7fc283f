// Files and command lines that nobody expects. The input is a .npy file and the words of a command
// line that reads it: no crash, one of the exit statuses, and after a refusal no file that was not
// there before. A file that can be read is written and read again as it was.
#include <unistd.h>

#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "check.h"
#include "command.h"
#include "npy.h"

int groupnorm_main(int argc, char** argv);  // tools/main.cpp under another name

namespace groupnorm::fuzz {
namespace {

namespace fs = std::filesystem;

// A directory of its own, which is also the working directory.
class Directory {
 public:
  Directory() {
    std::string name = (fs::temp_directory_path() / "groupnorm-fuzz-XXXXXX").string();
    check(mkdtemp(name.data()) != nullptr, "mkdtemp");
    path_ = name;
    fs::current_path(path_);
  }
  ~Directory() {
    fs::current_path("/");
    fs::remove_all(path_);
  }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;

  std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const fs::directory_entry& entry : fs::directory_iterator(path_)) {
      names.push_back(entry.path().filename());
    }
    std::sort(names.begin(), names.end());
    return names;
  }

 private:
  fs::path path_;
};

void write_file(const char* name, const std::vector<char>& bytes) {
  std::ofstream(name, std::ios::binary)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

// `check` and `bench` do nothing with files, and would take as long as a fuzzer asks them to.
constexpr const char* kCommands[] = {"run",  "run",    "run",       "run", "groups",
                                     "info", "--help", "--version", ""};
// "/dev/full" has no room, "." is a directory, "x.npy" is what is read.
constexpr const char* kWords[] = {"x.npy",
                                  "p.npy",
                                  "y.npy",
                                  "-o",
                                  "y.npy",
                                  "s.npy",
                                  "none/y.npy",
                                  "/dev/full",
                                  ".",
                                  "--norm",
                                  "group",
                                  "layer",
                                  "instance",
                                  "batch",
                                  "rms",
                                  "--groups",
                                  "1",
                                  "2",
                                  "0",
                                  "-3",
                                  "320",
                                  "1e-5",
                                  "--eps",
                                  "nan",
                                  "--layout",
                                  "channels_last",
                                  "--activation",
                                  "silu",
                                  "gelu_tanh",
                                  "--gamma",
                                  "--beta",
                                  "--stats",
                                  "--correction",
                                  "--threads",
                                  "--target",
                                  "scalar",
                                  "avx2",
                                  "--report",
                                  "--reference",
                                  "--json",
                                  "--help",
                                  "--nosuch",
                                  "ghost_batch",
                                  "batch_group",
                                  "group_rms",
                                  "99999999999999999999",
                                  "=",
                                  ""};

// Of free words only the name of a file might do harm: it has no directory.
std::string take_word(FuzzedDataProvider& from) {
  if (from.ConsumeIntegralInRange(0, 9) != 0) return from.PickValueInArray(kWords);
  std::string word = from.ConsumeRandomLengthString(40);
  std::replace(word.begin(), word.end(), '/', '_');
  return word.substr(0, std::min(word.find('\0'), word.size()));
}

std::vector<std::string> take_command_line(FuzzedDataProvider& from) {
  std::vector<std::string> words{"groupnorm", from.PickValueInArray(kCommands)};
  if (words[1] == "run" && from.ConsumeBool()) {
    words.insert(words.end(), {"x.npy", "-o", "y.npy", "--norm", "layer"});
  }
  const int count = from.ConsumeIntegralInRange(0, 10);
  for (int i = 0; i < count; ++i) words.push_back(take_word(from));
  const bool slow = std::any_of(words.begin(), words.end(), [](const std::string& word) {
    return word == "check" || word == "bench";
  });
  if (slow) words.resize(2);
  return words;
}

int run(std::vector<std::string> words) {
  std::vector<char*> arguments;
  arguments.reserve(words.size() + 1);
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  return groupnorm_main(static_cast<int>(words.size()), arguments.data());
}

bool same(const tools::Npy& a, const tools::Npy& b) {
  return a.dtype == b.dtype && a.shape == b.shape && a.data.size() == b.data.size() &&
         (a.data.size() == 0 || std::memcmp(a.data.data(), b.data.data(), a.data.size()) == 0);
}

void round_trip() {
  try {
    const tools::Npy x = tools::read_npy("x.npy");
    tools::PendingFile file("again.npy");
    tools::write_npy(file, x.dtype, x.shape, {x.data.data(), x.data.size()});
    file.commit();
    check(same(x, tools::read_npy("again.npy")), "another array after writing and reading");
    fs::remove("again.npy");
  } catch (const tools::BadInput&) {
    // Refused, in words.
  }
}

// Half of the files begin as they should, so that what follows is looked at.
std::vector<char> take_file(FuzzedDataProvider& from) {
  constexpr std::array kStart{'\x93', 'N', 'U', 'M', 'P', 'Y', '\x01', '\0'};
  const bool begun = from.ConsumeBool();
  std::vector<char> bytes = from.ConsumeRemainingBytes<char>();
  if (!begun) return bytes;
  // The length of the header is that of its text, up to the end of the line.
  const auto end = std::find(bytes.begin(), bytes.end(), '\n');
  const auto length = static_cast<std::size_t>(end - bytes.begin()) + (end == bytes.end() ? 0 : 1);
  std::vector<char> file(kStart.begin(), kStart.end());
  file.push_back(static_cast<char>(length & 0xFF));
  file.push_back(static_cast<char>(length >> 8));
  file.insert(file.end(), bytes.begin(), bytes.end());
  return file;
}

void run(FuzzedDataProvider& from) {
  static const Directory directory;
  const std::vector<std::string> words = take_command_line(from);
  const std::vector<char> bytes = take_file(from);
  write_file("x.npy", bytes);
  write_file("p.npy", bytes);
  round_trip();
  const std::vector<std::string> before = directory.files();
  const int status = run(words);
  check(status >= tools::kOk && status <= tools::kBadInput,
        "exit status " + std::to_string(status));
  const std::vector<std::string> after = directory.files();
  if (status == tools::kBadInput) check(after == before, "a refused command left a file");
  for (const std::string& name : after) {
    check(!name.starts_with(".groupnorm."), "a temporary file was left");
    fs::remove(name);
  }
}

}  // namespace
}  // namespace groupnorm::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  FuzzedDataProvider from(data, size);
  groupnorm::fuzz::run(from);
  return 0;
}
