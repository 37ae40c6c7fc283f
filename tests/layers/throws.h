// Refusals are tested by their words.
#ifndef GROUPNORM_TESTS_LAYERS_THROWS_H
#define GROUPNORM_TESTS_LAYERS_THROWS_H

#include <groupnorm/layers.hpp>

#include <gtest/gtest.h>

#include <initializer_list>
#include <string>

namespace groupnorm::testing {

// `call` throws Error, and its message holds each of `words`.
template <class Call>
void expect_error(Call&& call, std::initializer_list<const char*> words) {
  try {
    call();
  } catch (const Error& error) {
    const std::string message = error.what();
    for (const char* word : words) {
      EXPECT_NE(message.find(word), std::string::npos)
          << "expected \"" << word << "\" in: " << message;
    }
    return;
  }
  ADD_FAILURE() << "no Error; expected one with \"" << *words.begin() << '"';
}

}  // namespace groupnorm::testing

#endif
