#include "xla.h"

#include "workspace.h"
#include "xla_abi.h"

#include <groupnorm/groupnorm.hpp>

#include <algorithm>
#include <atomic>
#include <exception>
#include <new>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace groupnorm::python::xla {
namespace {

// ---- Versions

// The newest of its minor numbers that these handlers have run with. XLA says which older ones it
// takes.
constexpr int kMajor = 0, kMinor = 3;

// Whether the call asks what the handler is; then it has been told.
bool introduced(const CallFrame& frame) {
  for (const Extension* each = frame.extensions; each != nullptr; each = each->next) {
    if (each->type != ExtensionType::metadata) continue;
    Metadata& metadata = *reinterpret_cast<const MetadataExtension*>(each)->metadata;
    const bool same_major = frame.api != nullptr && frame.api->version.major == kMajor;
    metadata.version.major = kMajor;
    metadata.version.minor = same_major ? std::min(frame.api->version.minor, kMinor) : kMinor;
    metadata.traits = 0;
    return true;
  }
  return false;
}

// ---- What a call is made of

[[noreturn]] void refuse(const std::string& text) {
  throw std::invalid_argument("groupnorm: " + text);
}

void require(Status status) {
  if (status != Status::ok) refuse(status_string(status));
}

// The enumerator called `name`.
template <class Enum>
Enum find(std::string_view name, Status rule) {
  const std::optional<Enum> value = from_string<Enum>(name);
  if (!value) require(rule);
  return *value;
}

constexpr DataType data_type(double) { return DataType::f64; }
constexpr DataType data_type(std::int64_t) { return DataType::s64; }
constexpr DataType data_type(bool) { return DataType::pred; }

class Arguments {
 public:
  explicit Arguments(const CallFrame& frame) : frame_(frame) {}

  template <class T>
  T scalar(std::string_view name) const {
    const auto& found = *static_cast<const Scalar*>(attribute(name, AttributeType::scalar));
    if (found.type != data_type(T{}))
      refuse("attribute " + std::string(name) + " is of another type");
    return *static_cast<const T*>(found.value);
  }
  std::string_view string(std::string_view name) const {
    const auto& found = *static_cast<const Bytes*>(attribute(name, AttributeType::string));
    return {found.data, found.size};
  }

  // The next of them; null where there is none.
  const Buffer* operand(bool there = true) { return next(frame_.operands, operand_, there); }
  const Buffer* result(bool there = true) { return next(frame_.results, result_, there); }
  bool more_results() const { return result_ < frame_.results.count; }

 private:
  const void* attribute(std::string_view name, AttributeType type) const {
    const Attributes& all = frame_.attributes;
    for (std::int64_t i = 0; i < all.count; ++i) {
      const std::string_view its_name(all.names[i]->data, all.names[i]->size);
      if (its_name == name && all.types[i] == type) return all.values[i];
    }
    refuse("there is no attribute " + std::string(name) + ", or of another type");
  }
  static const Buffer* next(const Buffers& all, std::int64_t& index, bool there) {
    if (!there) return nullptr;
    if (index >= all.count) refuse("an operand or a result is missing");
    return all.buffers[index++];
  }

  const CallFrame& frame_;
  std::int64_t operand_ = 0, result_ = 0;
};

DType dtype(const Buffer& buffer, Status rule) {
  switch (buffer.type) {
    case DataType::f32: return DType::f32;
    case DataType::f64: return DType::f64;
    case DataType::f16: return DType::f16;
    case DataType::bf16: return DType::bf16;
    case DataType::pred:
    case DataType::s64:
    case DataType::u32: break;
  }
  require(rule);
  return {};
}

template <class T = void>
T* data(const Buffer* buffer) {
  return buffer == nullptr ? nullptr : static_cast<T*>(buffer->data);
}

std::int64_t elements(const Buffer& buffer) {
  std::int64_t product = 1;
  for (const std::int64_t size : std::span(buffer.dims, static_cast<std::size_t>(buffer.rank))) {
    product *= size;
  }
  return product;
}

void require_elements(const Buffer* buffer, std::int64_t count, const char* name) {
  if (buffer == nullptr || elements(*buffer) == count) return;
  refuse(std::string(name) + " has " + std::to_string(elements(*buffer)) +
         " elements; it must have " + std::to_string(count));
}

// The Spec of a call on this x, scale and bias.
Spec spec_of(const Arguments& arguments, const Buffer& x, const Buffer* scale, const Buffer* bias) {
  if (x.rank != 3) refuse("x must have three axes");
  const auto layout = find<Layout>(arguments.string("layout"), Status::unknown_layout);
  const bool first = layout == Layout::channels_first;
  Spec spec{
      .shape = {x.dims[0], x.dims[first ? 1 : 2], x.dims[first ? 2 : 1]},
      .block = {1, arguments.scalar<std::int64_t>("channels")},
      .layout = layout,
      .data = dtype(x, Status::unknown_data),
      .activation = find<Activation>(arguments.string("activation"), Status::unknown_activation),
      .center = arguments.scalar<bool>("center"),
      .eps = arguments.scalar<double>("eps")};
  const Buffer* const param = scale != nullptr ? scale : bias;
  spec.param = param == nullptr ? spec.data : dtype(*param, Status::unknown_param);
  const bool for_each_example = param != nullptr && param->rank == 2;
  if (for_each_example) spec.param_stride = spec.shape.c;
  const std::int64_t count = for_each_example ? spec.shape.n * spec.shape.c : spec.shape.c;
  require_elements(scale, count, "scale");
  require_elements(bias, count, "bias");
  return spec;
}

// A double is two elements of uint32.
void require_statistics(const Plan& plan, const Buffer* mean, const Buffer* rstd) {
  require_elements(mean, 2 * plan.blocks(), "mean");
  require_elements(rstd, 2 * plan.blocks(), "rstd");
}

// ---- Memory

// XLA has a large result's memory from the system anew in each call. By pages of 4 KB that takes
// several times as long as the norm; by 2 MB at a time it does not. NumPy asks for the same of its
// arrays, from the same size on.
void ask_for_huge_pages([[maybe_unused]] const Buffer* result) {
#if defined(__linux__)
  constexpr std::uintptr_t kHuge = 2 << 20, kLarge = 4 << 20;
  if (result == nullptr) return;
  const unsigned element = result->type == DataType::f64   ? 8
                           : result->type == DataType::f32 ? 4
                                                           : 2;
  const std::uintptr_t bytes = static_cast<std::uintptr_t>(elements(*result)) * element;
  if (bytes < kLarge) return;
  const std::uintptr_t before = -reinterpret_cast<std::uintptr_t>(result->data) % kHuge;
  madvise(data<std::byte>(result) + before, bytes - before, MADV_HUGEPAGE);
#endif
}

// ---- Threads

// Tasks that several threads take until none is left. Who comes late finds none, and touches
// nothing but this: it lives until its last user is gone.
struct Job {
  Executor::Task task;
  void* arg;
  std::int64_t count;
  std::atomic<std::int64_t> next{0};
  std::atomic<std::int64_t> left{count};
  std::atomic<std::int64_t> users{1};

  void work() {
    for (std::int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) {
      task(arg, i);
      if (left.fetch_sub(1, std::memory_order_acq_rel) == 1) left.notify_all();
    }
  }
  void wait() {
    for (std::int64_t now = left.load(std::memory_order_acquire); now != 0;
         now = left.load(std::memory_order_acquire)) {
      left.wait(now, std::memory_order_acquire);
    }
  }
  void release() {
    if (users.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }
};

// Those on which XLA runs the other operations of the program. All of them may be in calls that
// wait for tasks: so the caller takes each task that nobody has begun, and waits for those alone
// that another thread is at.
class Threads {
 public:
  explicit Threads(const CallFrame& frame) : frame_(frame) {}

  Executor executor() {
    constexpr std::int64_t kMost = 1024;  // of an Executor
    std::int64_t threads = 0;
    CountThreads count{sizeof(CountThreads), nullptr, frame_.context, &threads};
    drop(frame_.api->count_threads(&count));
    return {run, this, static_cast<int>(std::clamp<std::int64_t>(threads, 1, kMost))};
  }

 private:
  static void run(void* self, std::int64_t count, Executor::Task task, void* arg) {
    Job* const job = new (std::nothrow) Job{task, arg, count};
    if (job == nullptr) {
      for (std::int64_t i = 0; i < count; ++i) task(arg, i);
      return;
    }
    const Threads& threads = *static_cast<const Threads*>(self);
    for (std::int64_t i = 1; i < count; ++i) {
      if (!threads.invite(*job)) break;
    }
    job->work();
    job->wait();
    job->release();
  }

  bool invite(Job& job) const {
    job.users.fetch_add(1, std::memory_order_relaxed);
    const auto help = [](void* data) {
      static_cast<Job*>(data)->work();
      static_cast<Job*>(data)->release();
    };
    Schedule schedule{sizeof(Schedule), nullptr, frame_.context, help, &job};
    if (!drop(frame_.api->schedule(&schedule))) return true;
    job.release();
    return false;
  }

  // Whether there was an error: there are no threads then but the caller.
  bool drop(Error* error) const {
    if (error == nullptr) return false;
    DestroyError destroy{sizeof(DestroyError), nullptr, error};
    frame_.api->destroy_error(&destroy);
    return true;
  }

  const CallFrame& frame_;
};

// ---- The handlers

void call_forward(const CallFrame& frame) {
  Arguments arguments(frame);
  const Buffer& x = *arguments.operand();
  const Buffer* const scale = arguments.operand(arguments.scalar<bool>("scale"));
  const Buffer* const bias = arguments.operand(arguments.scalar<bool>("bias"));
  const Buffer* const y = arguments.result();
  const bool statistics = arguments.more_results();
  const Buffer* const mean = arguments.result(statistics);
  const Buffer* const rstd = arguments.result(statistics);

  Plan plan;
  require(Plan::make(spec_of(arguments, x, scale, bias), &plan));
  require_elements(y, elements(x), "y");
  require_statistics(plan, mean, rstd);
  ask_for_huge_pages(y);
  const Workspace workspace(plan.workspace_bytes());
  Threads threads(frame);
  require(plan.forward({.x = data(&x),
                        .y = data(y),
                        .gamma = data(scale),
                        .beta = data(bias),
                        .mean = data<double>(mean),
                        .rstd = data<double>(rstd)},
                       workspace.span(), threads.executor()));
}

void call_backward(const CallFrame& frame) {
  Arguments arguments(frame);
  const Buffer& x = *arguments.operand();
  const Buffer* const dy = arguments.operand();
  const Buffer* const scale = arguments.operand(arguments.scalar<bool>("scale"));
  const Buffer* const bias = arguments.operand(arguments.scalar<bool>("bias"));
  const Buffer* const mean = arguments.operand();
  const Buffer* const rstd = arguments.operand();
  const Buffer* const dx = arguments.result(arguments.scalar<bool>("dx"));
  const Buffer* const dscale = arguments.result(arguments.scalar<bool>("dscale"));
  const Buffer* const dbias = arguments.result(arguments.scalar<bool>("dbias"));

  Plan plan;
  const Spec spec = spec_of(arguments, x, scale, bias);
  require(Plan::make(spec, &plan));
  require_elements(dy, elements(x), "dy");
  require_elements(dx, elements(x), "dx");
  const std::int64_t params = spec.param_stride == 0 ? spec.shape.c : spec.shape.n * spec.shape.c;
  require_elements(dscale, params, "dscale");
  require_elements(dbias, params, "dbias");
  require_statistics(plan, mean, rstd);
  ask_for_huge_pages(dx);
  const Workspace workspace(plan.backward_workspace_bytes());
  Threads threads(frame);
  require(plan.backward({.x = data(&x),
                         .dy = data(dy),
                         .gamma = data(scale),
                         .beta = data(bias),
                         .mean = data<double>(mean),
                         .rstd = data<double>(rstd),
                         .dx = data(dx),
                         .dgamma = data(dscale),
                         .dbeta = data(dbias)},
                        workspace.span(), threads.executor()));
}

Error* create_error(const Api& api, ErrorCode code, const char* text) {
  CreateError create{sizeof(CreateError), nullptr, text, code};
  return api.create_error(&create);
}

template <void (*call)(const CallFrame&)>
Error* handle(const CallFrame& frame) noexcept {
  if (introduced(frame) || frame.stage != Stage::execute) return nullptr;
  try {
    call(frame);
    return nullptr;
  } catch (const std::bad_alloc&) {
    return create_error(*frame.api, ErrorCode::resource_exhausted, "groupnorm: out of memory");
  } catch (const std::exception& refusal) {
    return create_error(*frame.api, ErrorCode::invalid_argument, refusal.what());
  }
}

}  // namespace

Error* forward(CallFrame* frame) noexcept { return handle<call_forward>(*frame); }
Error* backward(CallFrame* frame) noexcept { return handle<call_backward>(*frame); }

}  // namespace groupnorm::python::xla
