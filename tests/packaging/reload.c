/* reload LIBRARY: loads the shared library, runs its threads and unloads it, twenty times. Each
 * time the result is the same, no thread is left, and nothing of the library stays mapped. */
#define _GNU_SOURCE
#include <groupnorm/groupnorm.h>

#include <dirent.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { kC = 8, kS = 20000, kSize = kC * kS };
static float x[kSize], first[kSize], y[kSize];
static char workspace[1 << 16];

static int threads(void) {
  int count = -2; /* . and .. */
  DIR* const tasks = opendir("/proc/self/task");
  while (tasks != NULL && readdir(tasks) != NULL) ++count;
  if (tasks != NULL) closedir(tasks);
  return count;
}

/* A thread that has been joined may be listed a moment longer: the kernel lets who waits go on
 * before it takes the thread out of /proc. One that runs stays listed. */
static int is_alone(void) {
  const struct timespec millisecond = {0, 1000000};
  for (int i = 0; i < 10000 && threads() != 1; ++i) nanosleep(&millisecond, NULL);
  return threads() == 1;
}

static int is_mapped(const char* name) {
  static char line[4096];
  int found = 0;
  FILE* const maps = fopen("/proc/self/maps", "r");
  while (maps != NULL && fgets(line, sizeof line, maps) != NULL)
    found |= strstr(line, name) != NULL;
  if (maps != NULL) fclose(maps);
  return found;
}

static const char* run(void* library, float* out) {
  gn_executor (*pool)(int) = NULL;
  gn_status (*make)(const gn_spec*, const char*, gn_plan*) = NULL;
  gn_status (*forward)(const gn_plan*, const gn_forward_args*, void*, size_t, const gn_executor*) =
      NULL;
  *(void**)&pool = dlsym(library, "gn_pool");
  *(void**)&make = dlsym(library, "gn_plan_make");
  *(void**)&forward = dlsym(library, "gn_forward");
  if (pool == NULL || make == NULL || forward == NULL) return "a function is missing";

  gn_spec spec;
  gn_spec_init(&spec);
  spec.shape = (gn_shape){1, kC, kS};
  spec.block = (gn_block){1, kC};
  gn_plan plan = {0};
  gn_forward_args args;
  gn_forward_args_init(&args);
  args.x = x;
  args.y = out;
  const gn_executor executor = pool(4);
  if (make(&spec, NULL, &plan) != GN_STATUS_OK) return "gn_plan_make";
  if (forward(&plan, &args, workspace, sizeof workspace, &executor) != GN_STATUS_OK) {
    return "gn_forward";
  }
  return threads() > 1 ? NULL : "the pool has started no thread";
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  for (int i = 0; i < kSize; ++i) x[i] = (float)(i % 1013);
  for (int i = 0; i < 20; ++i) {
    void* const library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) return printf("%s\n", dlerror()), 1;
    const char* const wrong = run(library, i == 0 ? first : y);
    if (wrong != NULL) return printf("time %d: %s\n", i, wrong), 1;
    if (i > 0 && memcmp(first, y, sizeof y) != 0) return printf("time %d: other bits\n", i), 1;
    if (dlclose(library) != 0) return printf("%s\n", dlerror()), 1;
    if (!is_alone()) return printf("time %d: a thread is left\n", i), 1;
    if (is_mapped("libgroupnorm")) return printf("time %d: still mapped\n", i), 1;
    /* Its handler of forks has gone with it. */
    const pid_t child = fork();
    int status = 0;
    if (child == 0) _exit(0);
    if (waitpid(child, &status, 0) != child || status != 0) return printf("time %d: fork\n", i), 1;
  }
  return 0;
}
