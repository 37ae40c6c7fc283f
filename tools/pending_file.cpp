#include "pending_file.h"

#include <sys/stat.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/xattr.h>
#endif

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstring>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "bad_input.h"

namespace groupnorm::tools {

namespace fs = std::filesystem;

// In static memory: a handler may read it while another thread leaves the PendingFile.
struct PendingFile::Temporary {
  std::atomic_flag taken;
  char name[PATH_MAX] = "";

  static std::array<Temporary, 4> all;  // more than any command writes at a time

  static Temporary& take() {
    for (Temporary& temporary : all) {
      if (!temporary.taken.test_and_set()) return temporary;
    }
    throw std::logic_error("too many pending files");
  }

  static void remove_all(int signal) {
    for (const Temporary& temporary : all) {
      if (temporary.taken.test()) unlink(temporary.name);
    }
    raise(signal);  // SA_RESETHAND: the process ends as if there were no handler
  }

  // A signal that is ignored, as by nohup, stays so.
  static void remove_all_at_signals() {
    for (const int signal : {SIGHUP, SIGINT, SIGTERM}) {
      struct sigaction action {};
      if (sigaction(signal, nullptr, &action) != 0 || action.sa_handler != SIG_DFL) continue;
      action.sa_handler = remove_all;
      action.sa_flags = static_cast<int>(SA_RESETHAND);
      sigaction(signal, &action, nullptr);
    }
  }
};
std::array<PendingFile::Temporary, 4> PendingFile::Temporary::all{};

namespace {

[[noreturn]] void refuse(const fs::path& path, const std::string& why) {
  throw BadInput("'" + path.string() + "': cannot be written: " + why);
}

bool is_output_of_this_process(const struct stat& file) {
  return std::ranges::any_of(std::array{STDOUT_FILENO, STDERR_FILENO}, [&](int descriptor) {
    struct stat output {};
    return fstat(descriptor, &output) == 0 && output.st_dev == file.st_dev &&
           output.st_ino == file.st_ino;
  });
}

// Throws for an existing file that must stay what it is.
void require_replaceable(const fs::path& path, const struct stat& found) {
  if (S_ISDIR(found.st_mode)) refuse(path, "is a directory");
  if (!S_ISREG(found.st_mode)) refuse(path, "is not a regular file");
  if (is_output_of_this_process(found)) refuse(path, "takes the output of this program");
  if (found.st_nlink > 1) {
    refuse(path, "has " + std::to_string(found.st_nlink) +
                     " names (hard links), of which only one would be replaced");
  }
  // The bits as well: root may write to every file, and means no more than others to lose this one.
  const bool writable = (found.st_mode & (S_IWUSR | S_IWGRP | S_IWOTH)) != 0;
  if (!writable || access(path.c_str(), W_OK) != 0) refuse(path, "is read-only");
}

// These two give `to` what belongs to a file beside its bytes; false, and errno, where they cannot.

#ifdef __linux__
bool copy_attributes(const char* from, int to) {
  std::vector<char> names(XATTR_LIST_MAX), value(XATTR_SIZE_MAX);
  const ssize_t size = listxattr(from, names.data(), names.size());
  if (size < 0) return errno == ENOTSUP;
  for (const char* name = names.data(); name < names.data() + size; name += std::strlen(name) + 1) {
    const ssize_t bytes = getxattr(from, name, value.data(), value.size());
    if (bytes < 0 || fsetxattr(to, name, value.data(), static_cast<std::size_t>(bytes), 0) != 0) {
      return false;
    }
  }
  return true;
}
#else
bool copy_attributes(const char* /*from*/, int /*to*/) { return true; }
#endif

// The owner first: a change of owner clears bits of the mode.
bool copy_owner_and_mode(const struct stat& from, int to) {
  struct stat now {};
  if (fstat(to, &now) != 0) return false;
  const bool same = now.st_uid == from.st_uid && now.st_gid == from.st_gid;
  return (same || fchown(to, from.st_uid, from.st_gid) == 0) &&
         fchmod(to, from.st_mode & 07777) == 0;
}

}  // namespace

PendingFile::PendingFile(const fs::path& path, Temporary& temporary)
    : path_(path), target_(path), temporary_(temporary) {}

// By another constructor, so that the destructor tidies up where this one throws.
PendingFile::PendingFile(const fs::path& path) : PendingFile(path, Temporary::take()) {
  if (path == "-") refuse(path, "standard output takes no array; ./- is a file of that name");
  struct stat found {};
  std::error_code error;
  const bool exists = stat(path.c_str(), &found) == 0;
  if (!exists && errno != ENOENT) fail();
  if (!exists && fs::is_symlink(path, error)) refuse(path, "is a symbolic link to nothing");
  if (exists) require_replaceable(path, found);
  if (exists) target_ = fs::canonical(path);
  create();
  const mode_t mask = umask(0);
  umask(mask);
  const bool ready = exists ? copy_owner_and_mode(found, descriptor_) &&
                                  copy_attributes(target_.c_str(), descriptor_)
                            : fchmod(descriptor_, 0666 & ~mask) == 0;  // mkstemp made it private
  if (!ready) fail();
}

void PendingFile::create() {
  const std::string name = (target_.parent_path() / ".groupnorm.XXXXXX").string();
  if (name.size() >= sizeof(temporary_.name)) refuse(path_, std::strerror(ENAMETOOLONG));
  std::strcpy(temporary_.name, name.c_str());
  Temporary::remove_all_at_signals();
  descriptor_ = mkstemp(temporary_.name);
  if (descriptor_ < 0) fail();
}

PendingFile::~PendingFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (temporary_.name[0] != '\0') unlink(temporary_.name);
  temporary_.name[0] = '\0';
  temporary_.taken.clear();
}

void PendingFile::fail() const { refuse(path_, std::strerror(errno)); }

void PendingFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail();
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

void PendingFile::commit() {
  // Some file systems tell of a full disk only here.
  const int closed = ::close(std::exchange(descriptor_, -1));
  if (closed != 0 || rename(temporary_.name, target_.c_str()) != 0) fail();
  temporary_.name[0] = '\0';
}

bool same_file(const fs::path& a, const fs::path& b) {
  std::error_code error;
  if (fs::equivalent(a, b, error)) return true;
  const auto name_of = [&](const fs::path& path) {
    return fs::weakly_canonical(fs::absolute(path, error), error);
  };
  return name_of(a) == name_of(b);
}

}  // namespace groupnorm::tools
