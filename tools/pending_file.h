// Files that are written whole or not at all.
#ifndef GROUPNORM_TOOLS_PENDING_FILE_H
#define GROUPNORM_TOOLS_PENDING_FILE_H

#include <cstddef>
#include <filesystem>
#include <span>

namespace groupnorm::tools {

// A file that appears under its name whole, at commit(), or not at all: it is written under another
// name in the same directory, which the destructor removes, and which SIGHUP, SIGINT and SIGTERM
// remove. It takes the mode, the owner and the extended attributes (access lists are among them) of
// the file that it replaces. A symbolic link stays: what it points at is replaced.
//
// Throws BadInput for what cannot be written, and for what would not be replaced but lost: a file
// that is read-only, that has further names (hard links), or that takes the output of this process;
// a symbolic link to nothing; all that is not a regular file.
class PendingFile {
 public:
  explicit PendingFile(const std::filesystem::path& path);
  PendingFile(const PendingFile&) = delete;
  PendingFile& operator=(const PendingFile&) = delete;
  ~PendingFile();

  void write(std::span<const std::byte> bytes);
  void commit();

 private:
  struct Temporary;  // a name that a signal handler can read

  PendingFile(const std::filesystem::path& path, Temporary& temporary);
  void create();
  [[noreturn]] void fail() const;  // by errno

  std::filesystem::path path_;    // as it was asked for
  std::filesystem::path target_;  // without symbolic links
  Temporary& temporary_;
  int descriptor_ = -1;
};

// Whether two paths name one file, or would: through links, and where there is none yet.
bool same_file(const std::filesystem::path& a, const std::filesystem::path& b);

}  // namespace groupnorm::tools

#endif
