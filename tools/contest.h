// What times calls: in turns, on the same sets of tensors, beside copies of the same bytes.
#ifndef GROUPNORM_TOOLS_CONTEST_H
#define GROUPNORM_TOOLS_CONTEST_H

#include <groupnorm/groupnorm.hpp>

#include <cstddef>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "machine.h"
#include "testing/cases.h"

namespace groupnorm::tools {

// The tensors of one call, one after another: x, y, or x, dy, dx.
struct Set {
  std::byte* begin;
  std::size_t stride;  // bytes
  std::byte* tensor(std::size_t i) const { return begin + i * stride; }
};

// How many sets of `set_bytes` bytes a contest takes: one if they are to stay in the caches.
inline std::size_t sets_of(std::size_t set_bytes, bool hot) {
  return hot ? 1 : detail::rotating_sets(set_bytes, detail::allowed_memory());
}

// Sets to go round, so that a set has left the caches when its turn comes again.
class Ring {
 public:
  // `sets` copies of `tensors`, all of one size. Every page is written, so that none is met for the
  // first time later. `tensors` must stay.
  Ring(std::vector<const testing::Buffer*> tensors, std::size_t sets);

  Set next();
  // To be called between the calls that are timed. A dy that one backward after another replaces by
  // its dx vanishes or overflows, channel by channel: it is filled again before that matters.
  void renew_if_worn();
  // Whether a set is expected to have left the caches when its turn comes again.
  bool is_cold() const;
  std::size_t sets() const { return sets_; }
  std::size_t tensors() const { return tensors_.size(); }  // of a set
  std::size_t tensor_bytes() const { return tensors_.front()->size(); }

 private:
  Set at(std::size_t set) { return {memory_.data() + set * tensors_.size() * stride_, stride_}; }
  void renew(Set set) const;

  std::vector<const testing::Buffer*> tensors_;
  std::size_t sets_, stride_;
  testing::Buffer memory_;
  std::size_t next_ = 0, turns_ = 0;
};

// Microseconds a call.
struct Quantiles {
  double p50, p99;
};

// One of the calls timed in turns.
class Contestant {
 public:
  Contestant(std::string name, std::function<void(Set)> call)
      : name_(std::move(name)), call_(std::move(call)) {}

  // Warms up, and finds how many calls take long enough (20 us) for the clock not to matter.
  void prepare(Ring& ring);
  // Microseconds a call, of one turn.
  double play(Ring& ring);
  std::size_t turns() const { return microseconds_.size(); }
  void forget() { microseconds_.clear(); }

  const std::string& name() const { return name_; }
  // Of the turns, each a mean of as many calls as `prepare` has found.
  Quantiles quantiles() const;

 private:
  double time(Ring& ring);

  std::string name_;
  std::function<void(Set)> call_;
  std::size_t calls_ = 1;
  std::vector<double> microseconds_;
};

// Contestants who take their turns once a round, so that all meet the same state of the machine.
class Contest {
 public:
  // Sets of copies of `tensors`, which must stay.
  Contest(const std::vector<const testing::Buffer*>& tensors, bool hot);

  Ring& ring() { return ring_; }
  const Ring& ring() const { return ring_; }
  void add(std::string name, std::function<void(Set)> call);
  // memcpy and a streaming copy on the threads of `executor`, from the first half of a set to the
  // second: as many bytes are read and written as by a call, which reads and writes each tensor of
  // a set once.
  void add_copies(const Executor& executor);

  // So many rounds at least, for their median to be one.
  static constexpr std::size_t kFewestRounds = 5;
  // After the last `add`, before the first round.
  void prepare();
  // One round; microseconds a call of who was added first.
  double play();
  std::size_t rounds() const { return contestants_.front().turns(); }
  void forget();  // the rounds so far

  Quantiles of(const std::string& name) const { return find(name).quantiles(); }
  // The faster one, by its median.
  const Contestant& copy() const;

 private:
  const Contestant& find(const std::string& name) const;

  Ring ring_;
  std::vector<Contestant> contestants_;
};

}  // namespace groupnorm::tools

#endif
