#include "contest.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "copy.h"
#include "machine.h"

namespace groupnorm::tools {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kLine = 64;

struct NamedCopy {
  const char* name;
  Copy copy;
};
constexpr NamedCopy kCopies[] = {{"memcpy", plain_copy}, {"streaming copy", streaming_copy}};

}  // namespace

Ring::Ring(std::vector<const testing::Buffer*> tensors, std::size_t sets)
    : tensors_(std::move(tensors)),
      sets_(sets),
      stride_((tensors_.front()->size() + kLine - 1) / kLine * kLine),
      memory_(sets * tensors_.size() * stride_) {
  for (std::size_t i = 0; i < sets; ++i) renew(at(i));
}

Set Ring::next() {
  ++turns_;
  return at(std::exchange(next_, next_ + 1 == sets_ ? 0 : next_ + 1));
}

bool Ring::is_cold() const { return memory_.size() >= 4 * detail::caches().last_level(); }

void Ring::renew_if_worn() {
  constexpr std::size_t kRounds = 16;
  if (turns_ < kRounds * sets_) return;
  turns_ = 0;
  for (std::size_t i = 0; i < sets_; ++i) renew(at((next_ + i) % sets_));
}

void Ring::renew(Set set) const {
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    std::memcpy(set.tensor(i), tensors_[i]->data(), tensors_[i]->size());
  }
}

void Contestant::prepare(Ring& ring) {
  constexpr double kLongEnough = 20;
  call_(ring.next());
  for (;; calls_ *= 2) {
    if (time(ring) * static_cast<double>(calls_) >= kLongEnough) return;
  }
}

double Contestant::play(Ring& ring) {
  ring.renew_if_worn();
  // One set is resident only after a call of its own: a streaming copy has thrown y out.
  if (ring.sets() == 1) call_(ring.next());
  return microseconds_.emplace_back(time(ring));
}

Quantiles Contestant::quantiles() const {
  std::vector<double> sorted = microseconds_;
  std::sort(sorted.begin(), sorted.end());
  const std::size_t count = sorted.size();
  return {sorted[count / 2], sorted[count * 99 / 100]};
}

double Contestant::time(Ring& ring) {
  const auto start = Clock::now();
  for (std::size_t i = 0; i < calls_; ++i) call_(ring.next());
  const std::chrono::duration<double, std::micro> time = Clock::now() - start;
  return time.count() / static_cast<double>(calls_);
}

Contest::Contest(const std::vector<const testing::Buffer*>& tensors, bool hot)
    : ring_(tensors, sets_of(tensors.size() * tensors.front()->size(), hot)) {}

void Contest::add(std::string name, std::function<void(Set)> call) {
  contestants_.emplace_back(std::move(name), std::move(call));
}

void Contest::add_copies(const Executor& executor) {
  const std::size_t half = ring_.tensors() * ring_.tensor_bytes() / 2;
  for (const NamedCopy& named : kCopies) {
    const Copy copy = named.copy;
    add(named.name,
        [=](Set set) { parallel_copy(copy, set.begin + half, set.begin, half, executor); });
  }
}

void Contest::prepare() {
  for (Contestant& contestant : contestants_) contestant.prepare(ring_);
}

double Contest::play() {
  const double first = contestants_.front().play(ring_);
  for (std::size_t i = 1; i < contestants_.size(); ++i) contestants_[i].play(ring_);
  return first;
}

void Contest::forget() {
  for (Contestant& contestant : contestants_) contestant.forget();
}

const Contestant& Contest::find(const std::string& name) const {
  for (const Contestant& contestant : contestants_) {
    if (contestant.name() == name) return contestant;
  }
  throw std::out_of_range("no contestant " + name);
}

const Contestant& Contest::copy() const {
  const Contestant &plain = find(kCopies[0].name), &streaming = find(kCopies[1].name);
  return plain.quantiles().p50 <= streaming.quantiles().p50 ? plain : streaming;
}

}  // namespace groupnorm::tools
