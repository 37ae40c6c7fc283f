// Instruction sets are visible: listed, named, forced; and the one asked for is the one that runs.
#include "engine.h"

#include "kernels/kernels.h"

#include <cstdlib>
#include <cstring>
#include <set>
#include <string>

namespace groupnorm::testing {
namespace {

using Target = EachTarget;
INSTANTIATE_TEST_SUITE_P(Targets, Target, ::testing::ValuesIn(targets()), target_name);

TEST(Target, EachIsListedOnce) {
  ASSERT_FALSE(targets().empty());
  std::set<std::string> names(targets().begin(), targets().end());
  EXPECT_EQ(names.size(), targets().size());
}

TEST_P(Target, TheOneAskedForRuns) {
  for (const auto& dtype : kDTypes) {
    Spec spec = group_spec({1, 4, 10}, 2);
    spec.data = spec.param = dtype.value;
    EXPECT_STREQ(make_plan(spec, target()).target(), target()) << dtype.name;
    const detail::Target* found = nullptr;
    ASSERT_EQ(detail::find_target(target(), dtype.value, &found), Status::ok);
    EXPECT_STREQ(found->of(dtype.value).target, target()) << "the table's own name, " << dtype.name;
  }
}

TEST(Target, BestFirst) {
  std::int64_t lanes = 1 << 10;
  for (const char* const target : targets()) {
    const detail::Target* found = nullptr;
    ASSERT_EQ(detail::find_target(target, DType::f32, &found), Status::ok);
    EXPECT_LE(found->of(DType::f32).lanes, lanes) << target;
    lanes = found->of(DType::f32).lanes;
  }
}

TEST(Target, NoneAtAllIsAStatus) {
  const detail::Target* found = nullptr;
  EXPECT_EQ(detail::choose_target({}, nullptr, &found), Status::unavailable_target);
  EXPECT_EQ(detail::choose_target({}, "scalar", &found), Status::unavailable_target);
  EXPECT_EQ(detail::choose_target({}, "mmx", &found), Status::unknown_target);
  EXPECT_EQ(found, nullptr);
}

TEST(Target, TheEnvironmentsIsTheDefault) {
  const char* const asked = std::getenv("GROUPNORM_TARGET");
  const char* const expected = asked != nullptr && *asked != '\0' ? asked : targets()[0];
  EXPECT_STREQ(active_target(), expected);
  EXPECT_STREQ(make_plan(group_spec({1, 4, 10}, 2), nullptr).target(), expected);
}

}  // namespace
}  // namespace groupnorm::testing
