/* plugins {FILE VERSION}...: loads them all where each may see the symbols of the others. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

int main(int count, char** arguments) {
  int wrong = 0;
  for (int i = 1; i + 1 < count; i += 2) {
    void* plugin = dlopen(arguments[i], RTLD_NOW | RTLD_GLOBAL);
    if (plugin == NULL) {
      printf("%s\n", dlerror());
      return 1;
    }
    const char* (*version)(void);
    *(void**)&version = dlsym(plugin, "plugin_groupnorm");
    if (strcmp(version(), arguments[i + 1]) == 0) continue;
    printf("%s: links %s, calls %s\n", arguments[i], arguments[i + 1], version());
    wrong = 1;
  }
  return wrong;
}
