/* Preloaded: the allocation whose number FAIL_MALLOC gives (from 0, counted from main on) answers
 * that there is no memory. At exit, the file that FAIL_MALLOC_COUNT names holds how many
 * allocations there were. Before main nobody can catch what a constructor throws, and nothing is
 * open yet. */
#define _GNU_SOURCE  // NOLINT(bugprone-reserved-identifier): what the C library asks for
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

typedef int (*main_function)(int, char**, char**);
typedef int (*start_function)(main_function, int, char**, void (*)(void), void (*)(void),
                              void (*)(void), void*);

static atomic_long allocations;
static atomic_int in_main;
static long failing = -1;
static main_function real_main;

static int counting_main(int argc, char** argv, char** environment) {
  const char* const number = getenv("FAIL_MALLOC");
  if (number != NULL) failing = atol(number);
  atomic_store(&in_main, 1);
  return real_main(argc, argv, environment);
}

/* The C library's way to main (glibc). */
// NOLINTNEXTLINE(bugprone-reserved-identifier)
int __libc_start_main(main_function program, int argc, char** argv, void (*init)(void),
                      void (*fini)(void), void (*loader_fini)(void), void* stack_end) {
  start_function start = NULL;
  *(void**)&start = dlsym(RTLD_NEXT, "__libc_start_main");
  real_main = program;
  return start(counting_main, argc, argv, init, fini, loader_fini, stack_end);
}

__attribute__((destructor)) static void end(void) {
  atomic_store(&in_main, 0);
  const char* const name = getenv("FAIL_MALLOC_COUNT");
  FILE* const file = name == NULL ? NULL : fopen(name, "w");
  if (file == NULL) return;
  fprintf(file, "%ld\n", atomic_load(&allocations));
  fclose(file);
}

static int fails(void) {
  return atomic_load(&in_main) && atomic_fetch_add(&allocations, 1) == failing;
}

void* malloc(size_t size) {
  static void* (*next)(size_t);
  if (next == NULL) *(void**)&next = dlsym(RTLD_NEXT, "malloc");
  return fails() ? NULL : next(size);
}

void* aligned_alloc(size_t alignment, size_t size) {
  static void* (*next)(size_t, size_t);
  if (next == NULL) *(void**)&next = dlsym(RTLD_NEXT, "aligned_alloc");
  return fails() ? NULL : next(alignment, size);
}
