/* normalize.c without the library: what is taken off to see what the library adds. */
enum { kSize = 32 * 64 };

static volatile float x[kSize], y[kSize];
static volatile char workspace[1024];

int main(void) {
  for (int i = 0; i < kSize; ++i) y[i] = x[i];
  return workspace[0];
}
