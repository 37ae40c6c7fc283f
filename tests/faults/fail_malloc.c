/* Preloaded: the allocation whose number FAIL_MALLOC gives (from 0) answers that there is no
 * memory. At exit, the file that FAIL_MALLOC_COUNT names holds how many allocations there were. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

static atomic_long allocations;
static long failing = -1;

__attribute__((constructor)) static void begin(void) {
  const char* const number = getenv("FAIL_MALLOC");
  if (number != NULL) failing = atol(number);
  atomic_store(&allocations, 0);
}

__attribute__((destructor)) static void end(void) {
  const long count = atomic_load(&allocations);
  const char* const name = getenv("FAIL_MALLOC_COUNT");
  FILE* const file = name == NULL ? NULL : fopen(name, "w");
  if (file == NULL) return;
  fprintf(file, "%ld\n", count);
  fclose(file);
}

static int fails(void) { return atomic_fetch_add(&allocations, 1) == failing; }

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
