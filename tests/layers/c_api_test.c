/* The C interface from C11: every function, and every status that this side of it can answer. */
#include <groupnorm/groupnorm.h>

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static int failures = 0;
static int checks = 0;

static void check(bool ok, const char* what, int line) {
  ++checks;
  if (ok) return;
  ++failures;
  fprintf(stderr, "c_api_test.c:%d: failed: %s\n", line, what);
}
#define CHECK(condition) check((condition), #condition, __LINE__)

enum { kN = 2, kC = 4, kS = 6, kGroups = 2, kBlocks = kN * kGroups, kSize = kN * kC * kS };
static const int kM = kSize / kBlocks;

/* Bits, not values: what is promised. */
static int same_bits(const void* a, const void* b, size_t bytes) {
  return memcmp(a, b, bytes) == 0;
}

static gn_spec make_spec(void) {
  gn_spec spec;
  gn_spec_init(&spec);
  spec.shape = (gn_shape){kN, kC, kS};
  spec.block = gn_group_norm(spec.shape, kGroups);
  return spec;
}

static gn_forward_args make_args(const void* x, void* y) {
  gn_forward_args args;
  gn_forward_args_init(&args);
  args.x = x;
  args.y = y;
  return args;
}

/* Of any alignment, so of that of a byte. The plans here need far less. */
static unsigned char workspace[1 << 20];

static gn_status run(const gn_spec* spec, const gn_forward_args* args) {
  gn_plan plan = {0};
  const gn_status status = gn_plan_make(spec, NULL, &plan);
  if (status != GN_STATUS_OK) return status;
  return gn_forward(&plan, args, workspace, sizeof workspace, NULL);
}

static void fill(float* x) {
  for (int i = 0; i < kSize; ++i) x[i] = (float)(i * i % 23) - 4;
}

/* mean and rstd of a block of x, whose elements lie side by side in channels_first. */
static void statistics(const float* x, int block, double correction, double* mean, double* rstd) {
  double sum = 0, squares = 0;
  for (int i = 0; i < kM; ++i) sum += x[block * kM + i];
  *mean = sum / kM;
  for (int i = 0; i < kM; ++i) squares += pow(x[block * kM + i] - *mean, 2);
  *rstd = 1 / sqrt(squares / (kM - correction) + 1e-5);
}

static void test_versions(void) {
  CHECK(strcmp(gn_version(), GROUPNORM_VERSION) == 0);
  CHECK(gn_abi_version() == GROUPNORM_ABI_VERSION);
}

static void test_blocks(void) {
  const gn_shape shape = {12, 6, 5};
  const gn_block group = gn_group_norm(shape, 3), layer = gn_layer_norm(shape);
  const gn_block instance = gn_instance_norm(shape), batch = gn_batch_norm(shape);
  const gn_block ghost = gn_ghost_batch_norm(shape, 3), both = gn_batch_group_norm(shape, 3);
  CHECK(group.examples == 1 && group.channels == 2);
  CHECK(layer.examples == 1 && layer.channels == 6);
  CHECK(instance.examples == 1 && instance.channels == 1);
  CHECK(batch.examples == 12 && batch.channels == 1);
  CHECK(ghost.examples == 4 && ghost.channels == 1);
  CHECK(both.examples == 12 && both.channels == 2);
}

static void test_suggested_groups(void) {
  const char* reason = NULL;
  CHECK(gn_suggest_groups(320, &reason) == 32);
  CHECK(reason != NULL && strstr(reason, "default") != NULL);
  CHECK(gn_suggest_groups(48, &reason) == 3);
  CHECK(strstr(reason, "nearest") != NULL);
  CHECK(gn_suggest_groups(7, NULL) == 1);
  CHECK(gn_suggest_groups(0, &reason) == 0);
  CHECK(gn_suggest_groups(-32, NULL) == 0);
}

static void test_targets(void) {
  size_t count = 0;
  const char* const* names = gn_targets(&count);
  CHECK(count > 0 && strcmp(names[count - 1], "scalar") == 0);
  CHECK(gn_targets(NULL) == names);

  const char* active = gn_active_target();
  bool listed = false;
  const gn_spec spec = make_spec();
  for (size_t i = 0; i < count; ++i) {
    gn_plan plan = {0};
    CHECK(gn_plan_make(&spec, names[i], &plan) == GN_STATUS_OK);
    CHECK(strcmp(gn_plan_target(&plan), names[i]) == 0);
    listed = listed || (active != NULL && strcmp(active, names[i]) == 0);
  }
  CHECK(listed);
  gn_plan plan = {0};
  CHECK(gn_plan_make(&spec, "no such target", &plan) == GN_STATUS_UNKNOWN_TARGET);
}

static void test_defaults(void) {
  gn_spec spec;
  memset(&spec, 0xFF, sizeof spec);
  gn_spec_init(&spec);
  CHECK(spec.struct_size == sizeof spec);
  CHECK(spec.block.examples == 1 && spec.block.channels == 1);
  CHECK(spec.shape.n == 0 && spec.shape.c == 0 && spec.shape.s == 1);
  CHECK(spec.layout == GN_LAYOUT_CHANNELS_FIRST && spec.activation == GN_ACTIVATION_NONE);
  CHECK(spec.data == GN_DTYPE_F32 && spec.param == GN_DTYPE_F32);
  CHECK(spec.center == 1 && spec.given_statistics == 0 && spec.correction == 0);
  CHECK(spec.eps == 1e-5 && spec.param_stride == 0);
  CHECK(spec.sequence == 0 && spec.shift == 0 && spec.scale == 0 && spec.lengths == 0);

  gn_forward_args args;
  memset(&args, 0xFF, sizeof args);
  gn_forward_args_init(&args);
  CHECK(args.struct_size == sizeof args);
  CHECK(args.x == NULL && args.y == NULL && args.gamma == NULL && args.beta == NULL);
  CHECK(args.mean == NULL && args.rstd == NULL);
  CHECK(args.given_mean == NULL && args.given_rstd == NULL);
  CHECK(args.skip == NULL && args.shift == NULL && args.residual == NULL && args.sum == NULL);
  CHECK(args.scale == NULL && args.offset == NULL && args.lengths == NULL);

  gn_backward_args backward;
  memset(&backward, 0xFF, sizeof backward);
  gn_backward_args_init(&backward);
  CHECK(backward.struct_size == sizeof backward);
  CHECK(backward.x == NULL && backward.dy == NULL);
  CHECK(backward.gamma == NULL && backward.beta == NULL);
  CHECK(backward.mean == NULL && backward.rstd == NULL && backward.accumulate == 0);
  CHECK(backward.dx == NULL && backward.dgamma == NULL && backward.dbeta == NULL);
  CHECK(backward.skip == NULL && backward.shift == NULL && backward.residual == NULL);
  CHECK(backward.scale == NULL && backward.offset == NULL && backward.lengths == NULL);
  CHECK(backward.dsum == NULL && backward.dresidual == NULL && backward.dshift == NULL);
  CHECK(backward.dscale == NULL && backward.doffset == NULL);
}

static void test_status_strings(void) {
  CHECK(strcmp(gn_status_string(GN_STATUS_OK), "ok") == 0);
  for (gn_status a = GN_STATUS_OK; a <= GN_STATUS_OVERLAP_DOFFSET; ++a) {
    CHECK(strlen(gn_status_string(a)) > 0);
    CHECK(strcmp(gn_status_string(a), "unknown status") != 0);
    for (gn_status b = GN_STATUS_OK; b < a; ++b) {
      CHECK(strcmp(gn_status_string(a), gn_status_string(b)) != 0);
    }
  }
  CHECK(strncmp(gn_status_string(GN_STATUS_EPS), "eps", 3) == 0);
  CHECK(strncmp(gn_status_string(GN_STATUS_STRUCT_SIZE), "struct_size", 11) == 0);
  const gn_status none[] = {-1, 200, 255, 256, 999, 1001, INT32_MAX, INT32_MIN};
  for (size_t i = 0; i < sizeof none / sizeof *none; ++i) {
    CHECK(strcmp(gn_status_string(none[i]), "unknown status") == 0);
  }
}

static void test_names(void) {
  typedef const char* (*name_of)(int32_t);
  typedef int (*from_name)(const char*, int32_t*);
  const struct {
    name_of name;
    from_name find;
    int32_t count;
  } tables[] = {{gn_dtype_name, gn_dtype_from_name, GN_DTYPE_BF16 + 1},
                {gn_layout_name, gn_layout_from_name, GN_LAYOUT_CHANNELS_LAST + 1},
                {gn_activation_name, gn_activation_from_name, GN_ACTIVATION_HARD_SWISH + 1}};
  for (size_t i = 0; i < sizeof tables / sizeof *tables; ++i) {
    int32_t value = 0;
    for (; tables[i].name(value) != NULL; ++value) {
      int32_t found = -1;
      CHECK(tables[i].find(tables[i].name(value), &found) == 1 && found == value);
    }
    CHECK(value == tables[i].count);
    const int32_t none[] = {-1, value, 255, 256, INT32_MAX, INT32_MIN};
    for (size_t j = 0; j < sizeof none / sizeof *none; ++j) CHECK(tables[i].name(none[j]) == NULL);
    const char* const unknown[] = {"", "F32", "silu ", "unknown", NULL};
    for (size_t j = 0; j < sizeof unknown / sizeof *unknown; ++j) {
      int32_t kept = 77;
      CHECK(tables[i].find(unknown[j], &kept) == 0 && kept == 77);
    }
    CHECK(tables[i].find(tables[i].name(0), NULL) == 0);
  }
  CHECK(strcmp(gn_dtype_name(GN_DTYPE_BF16), "bf16") == 0);
  CHECK(strcmp(gn_layout_name(GN_LAYOUT_CHANNELS_LAST), "channels_last") == 0);
  CHECK(strcmp(gn_activation_name(GN_ACTIVATION_GELU_TANH), "gelu_tanh") == 0);
}

static void test_forward(void) {
  const float gamma[kC] = {1, 2, -0.5F, 3}, beta[kC] = {0, 1, -1, 0.25F};
  float x[kSize], y[kSize];
  double mean[kBlocks], rstd[kBlocks];
  fill(x);

  for (int correction = 0; correction <= 1; ++correction) {
    gn_spec spec = make_spec();
    spec.correction = correction;
    spec.activation = GN_ACTIVATION_RELU;
    gn_forward_args args = make_args(x, y);
    args.gamma = gamma;
    args.beta = beta;
    args.mean = mean;
    args.rstd = rstd;
    CHECK(run(&spec, &args) == GN_STATUS_OK);
    for (int i = 0; i < kSize; ++i) {
      double block_mean, block_rstd;
      statistics(x, i / kM, correction, &block_mean, &block_rstd);
      const int c = i / kS % kC;
      const double z = gamma[c] * ((x[i] - block_mean) * block_rstd) + beta[c];
      CHECK(fabs(y[i] - fmax(z, 0)) <= 1e-6 * (1 + fabs(z)));
      CHECK(fabs(mean[i / kM] - block_mean) < 1e-12);
      CHECK(fabs(rstd[i / kM] - block_rstd) < 1e-12);
    }
  }
}

static void test_options_arrive(void) {
  float x[kSize], y[kSize], transposed[kSize], expected[kSize];
  double mean[kBlocks], rstd[kBlocks];
  fill(x);
  gn_spec spec = make_spec();
  gn_forward_args args = make_args(x, expected);
  args.mean = mean;
  args.rstd = rstd;
  CHECK(run(&spec, &args) == GN_STATUS_OK);

  /* channels_last: the same numbers, N,S,C. */
  for (int i = 0; i < kSize; ++i) {
    const int n = i / (kC * kS), c = i / kS % kC, s = i % kS;
    transposed[(n * kS + s) * kC + c] = x[i];
  }
  spec.layout = GN_LAYOUT_CHANNELS_LAST;
  args = make_args(transposed, y);
  CHECK(run(&spec, &args) == GN_STATUS_OK);
  for (int i = 0; i < kSize; ++i) {
    const int n = i / (kC * kS), c = i / kS % kC, s = i % kS;
    CHECK(fabsf(y[(n * kS + s) * kC + c] - expected[i]) <= 1e-6F);
  }

  /* Given statistics. */
  spec = make_spec();
  spec.given_statistics = 7; /* any number but 0 */
  args = make_args(x, y);
  args.given_mean = mean;
  args.given_rstd = rstd;
  CHECK(run(&spec, &args) == GN_STATUS_OK);
  for (int i = 0; i < kSize; ++i) CHECK(fabsf(y[i] - expected[i]) <= 1e-6F);

  /* Not centred. */
  spec = make_spec();
  spec.center = 0;
  args = make_args(x, y);
  args.mean = mean;
  CHECK(run(&spec, &args) == GN_STATUS_OK);
  for (int b = 0; b < kBlocks; ++b) {
    const int first = b * kM;
    double squares = 0;
    for (int i = first; i < first + kM; ++i) squares += (double)x[i] * x[i] / kM;
    CHECK(mean[b] == 0);
    CHECK(fabs(y[first] - x[first] / sqrt(squares + 1e-5)) <= 1e-6);
  }

  /* f64, and its eps: a constant block gives 0 / sqrt(eps) = 0. */
  double doubles[kSize];
  for (int i = 0; i < kSize; ++i) doubles[i] = 0.1;
  spec = make_spec();
  spec.data = spec.param = GN_DTYPE_F64;
  spec.eps = 4;
  args = make_args(doubles, doubles);
  args.rstd = rstd;
  CHECK(run(&spec, &args) == GN_STATUS_OK);
  for (int i = 0; i < kSize; ++i) CHECK(doubles[i] == 0);
  CHECK(rstd[0] == 0.5);

  /* A gamma for each example: 1 for the first, 2 for the second, 5 floats apart. */
  const float gamma[9] = {1, 1, 1, 1, -7, 2, 2, 2, 2};
  spec = make_spec();
  spec.param_stride = 5;
  args = make_args(x, y);
  args.gamma = gamma;
  CHECK(run(&spec, &args) == GN_STATUS_OK);
  for (int i = 0; i < kSize; ++i) {
    const float scale = i < kC * kS ? 1 : 2;
    CHECK(fabsf(y[i] - scale * expected[i]) <= 1e-6F * scale);
  }
}

/* What models compute around a norm, of which skip, shift, sum, residual, scale and offset are
 * here, and lengths and sequences below. */
static void test_neighbours(void) {
  const float gamma[kC] = {1, 2, -0.5F, 3}, beta[kC] = {0, 1, -1, 0.25F};
  float x[kSize], y[kSize], u[kSize], skip[kSize], residual[kSize], sum[kSize];
  float shift[kN * kC], scale[kN * kC], offset[kN * kC];
  fill(x);
  for (int i = 0; i < kSize; ++i) {
    skip[i] = (float)(i * 5 % 7) - 3;
    residual[i] = (float)(i * 3 % 8) / 4;
  }
  for (int i = 0; i < kN * kC; ++i) {
    shift[i] = (float)i / 2;
    scale[i] = (float)(i % 3) - 1;
    offset[i] = (float)(i % 5);
  }
  for (int i = 0; i < kSize; ++i) u[i] = x[i] + skip[i] + shift[i / kS]; /* exact */
  gn_spec spec = make_spec();
  spec.activation = GN_ACTIVATION_RELU;
  gn_forward_args args = make_args(x, y);
  args.gamma = gamma;
  args.beta = beta;
  args.skip = skip;
  args.residual = residual;
  args.sum = sum;
  args.shift = shift;
  CHECK(run(&spec, &args) == GN_STATUS_UNEXPECTED_SHIFT);
  spec.shift = 5; /* any number but 0 */
  args.scale = scale;
  args.offset = offset;
  CHECK(run(&spec, &args) == GN_STATUS_UNEXPECTED_SCALE);
  spec.scale = 1;
  CHECK(run(&spec, &args) == GN_STATUS_OK);
  CHECK(same_bits(sum, u, sizeof u));
  for (int i = 0; i < kSize; ++i) {
    double mean, rstd;
    statistics(u, i / kM, 0, &mean, &rstd);
    const int row = i / kS, c = row % kC;
    const double norm = gamma[c] * ((u[i] - mean) * rstd) + beta[c];
    const double z = norm * (1 + scale[row]) + offset[row] + residual[i];
    CHECK(fabs(y[i] - fmax(z, 0)) <= 1e-6 * (1 + 2 * fabs(norm) + fabs(z)));
  }
  args.y = residual;
  CHECK(run(&spec, &args) == GN_STATUS_OK);
  CHECK(same_bits(residual, y, sizeof y));
}

/* Each example by itself, over its own length; a sequence of rows as well. */
static void test_lengths(void) {
  float x[kSize], y[kSize], alone[kC * kS];
  fill(x);
  int64_t lengths[kN] = {kS, 2};
  for (int i = kC * kS; i < kSize; ++i) {
    if (i % kS >= 2) x[i] = (float)NAN;
  }
  gn_spec spec = make_spec(), one = make_spec();
  gn_forward_args args = make_args(x, y);
  args.lengths = lengths;
  CHECK(run(&spec, &args) == GN_STATUS_UNEXPECTED_LENGTHS);
  spec.lengths = 1;
  CHECK(run(&spec, &args) == GN_STATUS_OK);
  one.shape = (gn_shape){1, kC, 2};
  float cut[kC * 2];
  for (int i = 0; i < kC * 2; ++i) cut[i] = x[kC * kS + i / 2 * kS + i % 2];
  const gn_forward_args own = make_args(cut, alone);
  CHECK(run(&one, &own) == GN_STATUS_OK);
  for (int i = 0; i < kC * kS; ++i) {
    const float expected = i % kS < 2 ? alone[i / kS * 2 + i % kS] : 0;
    CHECK(same_bits(&y[kC * kS + i], &expected, sizeof expected));
  }
  const int64_t wrong[] = {-1, kS + 1, INT64_MAX, INT64_MIN};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; ++i) {
    lengths[1] = wrong[i];
    CHECK(run(&spec, &args) == GN_STATUS_LENGTHS);
  }

  /* Two sequences of three rows of 8 features, of which two and none are there. */
  spec.shape = (gn_shape){6, 8, 1};
  spec.block = gn_layer_norm(spec.shape);
  spec.sequence = 3;
  fill(x);
  lengths[0] = 2;
  lengths[1] = 0;
  CHECK(run(&spec, &args) == GN_STATUS_OK);
  for (int i = 0; i < 48; ++i) CHECK((y[i] == 0) == (i >= 16));
  spec.sequence = 4;
  CHECK(run(&spec, &args) == GN_STATUS_SEQUENCE);
}

/* What the tests of backward share: the inputs and outputs of one call in f64. */
struct gradients {
  gn_spec spec;
  gn_plan plan;
  double x[kSize], dy[kSize], gamma[kC], beta[kC], mean[kBlocks], rstd[kBlocks];
  double dx[kSize], dgamma[kC], dbeta[kC];
  double skip[kSize], residual[kSize], dsum[kSize], dresidual[kSize];
  double shift[kN * kC], scale[kN * kC], offset[kN * kC];
  double dshift[kN * kC], dscale[kN * kC], doffset[kN * kC];
  int64_t lengths[kN];
};

/* The loss whose gradients backward gives: the sum of dy * y, and of dsum * sum where there are
 * neighbours. Keeps mean and rstd. */
static double loss(struct gradients* g) {
  double y[kSize], u[kSize];
  gn_forward_args args = make_args(g->x, y);
  if (g->spec.scale != 0) {
    args.skip = g->skip;
    args.shift = g->shift;
    args.residual = g->residual;
    args.scale = g->scale;
    args.offset = g->offset;
    args.sum = u;
    args.lengths = g->lengths;
  }
  args.gamma = g->gamma;
  args.beta = g->beta;
  args.mean = g->mean;
  args.rstd = g->rstd;
  CHECK(gn_forward(&g->plan, &args, workspace, sizeof workspace, NULL) == GN_STATUS_OK);
  double sum = 0;
  for (int i = 0; i < kSize; ++i) {
    sum += g->dy[i] * y[i];
    if (g->spec.scale != 0) sum += g->dsum[i] * u[i];
  }
  return sum;
}

static struct gradients make_gradients(gn_activation activation) {
  struct gradients g = {
      .spec = make_spec(), .plan = {{0}}, .gamma = {1, 2, -0.5, 3}, .beta = {0, 1, -1, 0.25}};
  g.spec.data = g.spec.param = GN_DTYPE_F64;
  g.spec.activation = activation;
  g.spec.correction = 1;
  CHECK(gn_plan_make(&g.spec, NULL, &g.plan) == GN_STATUS_OK);
  float x[kSize];
  fill(x);
  for (int i = 0; i < kSize; ++i) {
    g.x[i] = x[i];
    g.dy[i] = (double)(i * 7 % 11) / 4 - 1;
  }
  loss(&g);
  return g;
}

static gn_backward_args make_backward_args(struct gradients* g) {
  gn_backward_args args;
  gn_backward_args_init(&args);
  args.x = g->x;
  args.dy = g->dy;
  args.gamma = g->gamma;
  args.beta = g->beta;
  args.mean = g->mean;
  args.rstd = g->rstd;
  args.dx = g->dx;
  args.dgamma = g->dgamma;
  args.dbeta = g->dbeta;
  return args;
}

static gn_status run_backward(const struct gradients* g, const gn_backward_args* args) {
  return gn_backward(&g->plan, args, workspace, sizeof workspace, NULL);
}

/* The slope of the loss along one number, by central differences: the truncation is below 1e-8 for
 * these inputs, and the rounding, 1e-15 of a loss of about 10 over the step, below 1e-9. */
static double slope(struct gradients* g, double* at) {
  const double step = 1e-5, value = *at;
  *at = value + step;
  const double above = loss(g);
  *at = value - step;
  const double below = loss(g);
  *at = value;
  return (above - below) / (2 * step);
}

static void test_backward_is_the_slope_of_forward(void) {
  const gn_activation activations[] = {GN_ACTIVATION_NONE, GN_ACTIVATION_SILU};
  for (size_t a = 0; a < sizeof activations / sizeof *activations; ++a) {
    struct gradients g = make_gradients(activations[a]);
    const gn_backward_args args = make_backward_args(&g);
    CHECK(run_backward(&g, &args) == GN_STATUS_OK);
    const double tolerance = 1e-7;
    for (int i = 0; i < kSize; ++i) CHECK(fabs(g.dx[i] - slope(&g, &g.x[i])) < tolerance);
    for (int c = 0; c < kC; ++c) {
      CHECK(fabs(g.dgamma[c] - slope(&g, &g.gamma[c])) < tolerance);
      CHECK(fabs(g.dbeta[c] - slope(&g, &g.beta[c])) < tolerance);
    }
  }
}

static void test_backward_of_neighbours(void) {
  struct gradients g = make_gradients(GN_ACTIVATION_SILU);
  g.spec.shift = g.spec.scale = g.spec.lengths = 1;
  CHECK(gn_plan_make(&g.spec, NULL, &g.plan) == GN_STATUS_OK);
  CHECK(gn_plan_workspace_bytes(&g.plan) <= sizeof workspace);
  for (int i = 0; i < kSize; ++i) {
    g.skip[i] = (double)(i * 5 % 13) / 3;
    g.residual[i] = (double)(i * 3 % 8) / 4 - 1;
    g.dsum[i] = (double)(i * 11 % 9) / 4;
  }
  for (int i = 0; i < kN * kC; ++i) {
    g.shift[i] = (double)i / 2;
    g.scale[i] = (double)(i % 3) / 2 - 0.25;
    g.offset[i] = (double)(i % 5) / 2;
  }
  g.lengths[0] = kS;
  g.lengths[1] = kS - 2;
  loss(&g);
  gn_backward_args args = make_backward_args(&g);
  args.skip = g.skip;
  args.shift = g.shift;
  args.residual = g.residual;
  args.scale = g.scale;
  args.offset = g.offset;
  args.lengths = g.lengths;
  args.dsum = g.dsum;
  args.dresidual = g.dresidual;
  args.dshift = g.dshift;
  args.dscale = g.dscale;
  args.doffset = g.doffset;
  CHECK(run_backward(&g, &args) == GN_STATUS_OK);
  const double tolerance = 1e-7;
  for (int i = 0; i < kSize; ++i) {
    CHECK(fabs(g.dx[i] - slope(&g, &g.x[i])) < tolerance);
    CHECK(fabs(g.dx[i] - slope(&g, &g.skip[i])) < tolerance);
    CHECK(fabs(g.dresidual[i] - slope(&g, &g.residual[i])) < tolerance);
  }
  for (int i = 0; i < kN * kC; ++i) {
    CHECK(fabs(g.dshift[i] - slope(&g, &g.shift[i])) < tolerance);
    CHECK(fabs(g.dscale[i] - slope(&g, &g.scale[i])) < tolerance);
    CHECK(fabs(g.doffset[i] - slope(&g, &g.offset[i])) < tolerance);
  }
  for (int c = 0; c < kC; ++c) {
    CHECK(fabs(g.dgamma[c] - slope(&g, &g.gamma[c])) < tolerance);
    CHECK(fabs(g.dbeta[c] - slope(&g, &g.beta[c])) < tolerance);
  }
  args.dshift = g.dx;
  CHECK(run_backward(&g, &args) == GN_STATUS_OVERLAP_DSHIFT);
  args.dshift = NULL;
  args.dsum = (const char*)g.dsum + 1;
  CHECK(run_backward(&g, &args) == GN_STATUS_MISALIGNED_DSUM);
}

static void test_backward_outputs(void) {
  struct gradients g = make_gradients(GN_ACTIVATION_SILU);
  const gn_backward_args good = make_backward_args(&g);
  CHECK(run_backward(&g, &good) == GN_STATUS_OK);
  const struct gradients expected = g;

  /* Each on its own. */
  memset(g.dx, 0, sizeof g.dx);
  memset(g.dgamma, 0, sizeof g.dgamma);
  memset(g.dbeta, 0, sizeof g.dbeta);
  gn_backward_args args = good;
  args.dgamma = args.dbeta = NULL;
  CHECK(run_backward(&g, &args) == GN_STATUS_OK);
  CHECK(same_bits(g.dx, expected.dx, sizeof g.dx) && g.dgamma[0] == 0 && g.dbeta[0] == 0);
  args = good;
  args.dx = args.dbeta = NULL;
  CHECK(run_backward(&g, &args) == GN_STATUS_OK);
  CHECK(same_bits(g.dgamma, expected.dgamma, sizeof g.dgamma) && g.dbeta[0] == 0);
  args = good;
  args.dx = args.dgamma = NULL;
  CHECK(run_backward(&g, &args) == GN_STATUS_OK);
  CHECK(same_bits(g.dbeta, expected.dbeta, sizeof g.dbeta));

  /* Added to what is there: the sum is rounded once. */
  args = good;
  args.accumulate = 256; /* any number but 0 */
  for (int c = 0; c < kC; ++c) g.dgamma[c] = g.dbeta[c] = 100;
  CHECK(run_backward(&g, &args) == GN_STATUS_OK);
  for (int c = 0; c < kC; ++c) {
    CHECK(g.dgamma[c] == 100 + expected.dgamma[c]);
    CHECK(g.dbeta[c] == 100 + expected.dbeta[c]);
  }

  /* In place. */
  args = good;
  args.dx = g.dy;
  CHECK(run_backward(&g, &args) == GN_STATUS_OK);
  CHECK(same_bits(g.dy, expected.dx, sizeof g.dy));
}

static void test_backward_errors(void) {
  struct gradients g = make_gradients(GN_ACTIVATION_SILU);
  for (int i = 0; i < kSize; ++i) g.dx[i] = 42;
  const gn_backward_args good = make_backward_args(&g);
  const size_t bytes = sizeof workspace;
  const gn_plan not_made = {0};
  CHECK(gn_backward(NULL, &good, workspace, bytes, NULL) == GN_STATUS_NOT_PLANNED);
  CHECK(gn_backward(&not_made, &good, workspace, bytes, NULL) == GN_STATUS_NOT_PLANNED);
  CHECK(gn_backward(&g.plan, NULL, workspace, bytes, NULL) == GN_STATUS_NULL_ARGS);
  gn_backward_args args = good;
  args.dy = NULL;
  CHECK(run_backward(&g, &args) == GN_STATUS_NULL_DY);
  args = good;
  args.rstd = NULL;
  CHECK(run_backward(&g, &args) == GN_STATUS_MISSING_RSTD);
  args = good;
  args.dy = (const char*)g.dy + 1;
  CHECK(run_backward(&g, &args) == GN_STATUS_MISALIGNED_DY);
  args = good;
  args.dx = g.x;
  CHECK(run_backward(&g, &args) == GN_STATUS_OVERLAP_DX);
  const gn_executor none = {NULL, NULL, 0};
  CHECK(gn_backward(&g.plan, &good, workspace, bytes, &none) == GN_STATUS_EXECUTOR);
  const size_t needed = gn_plan_backward_workspace_bytes(&g.plan);
  CHECK(needed <= bytes);
  if (needed > 0) {
    CHECK(gn_backward(&g.plan, &good, workspace, needed - 1, NULL) ==
          GN_STATUS_BACKWARD_WORKSPACE_TOO_SMALL);
  }

  struct newer_args {
    gn_backward_args args;
    void* added;
  } newer = {good, NULL};
  const size_t wrong[] = {0, 1, sizeof(size_t), sizeof good - 1, 1U << 20, SIZE_MAX};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; ++i) {
    args = good;
    args.struct_size = wrong[i];
    CHECK(run_backward(&g, &args) == GN_STATUS_STRUCT_SIZE);
  }
  newer.args.struct_size = sizeof newer;
  newer.added = g.x;
  CHECK(run_backward(&g, &newer.args) == GN_STATUS_STRUCT_SIZE);
  for (int i = 0; i < kSize; ++i) CHECK(g.dx[i] == 42);
  /* A caller of the first version, which ended with dbeta: nothing behind it is read. */
  args = good;
  args.struct_size = offsetof(gn_backward_args, skip);
  args.skip = args.lengths = (const void*)&newer;
  args.dshift = g.x;
  CHECK(run_backward(&g, &args) == GN_STATUS_OK);
  newer.added = NULL;
  CHECK(run_backward(&g, &newer.args) == GN_STATUS_OK);
  CHECK(g.dx[0] != 42);
}

static void test_spec_errors(void) {
  gn_plan plan = {0};
  const gn_spec good = make_spec();
  CHECK(gn_plan_make(NULL, NULL, &plan) == GN_STATUS_NULL_SPEC);
  CHECK(gn_plan_make(&good, NULL, NULL) == GN_STATUS_NULL_PLAN);

#define EXPECT_REFUSED(field, value, expected)             \
  do {                                                     \
    gn_spec spec = make_spec();                            \
    spec.field = (value);                                  \
    CHECK(gn_plan_make(&spec, NULL, &plan) == (expected)); \
  } while (0)
  EXPECT_REFUSED(shape.n, -1, GN_STATUS_NEGATIVE_SIZE);
  EXPECT_REFUSED(shape.s, INT64_MAX, GN_STATUS_SIZE_OVERFLOW);
  EXPECT_REFUSED(block, gn_group_norm(good.shape, 3), GN_STATUS_GROUPS_DO_NOT_DIVIDE);
  EXPECT_REFUSED(block, gn_group_norm(good.shape, 0), GN_STATUS_GROUPS_DO_NOT_DIVIDE);
  EXPECT_REFUSED(block, gn_ghost_batch_norm(good.shape, 3), GN_STATUS_BATCHES_DO_NOT_DIVIDE);
  EXPECT_REFUSED(block.examples, 3, GN_STATUS_BLOCK_EXAMPLES);
  EXPECT_REFUSED(block.channels, 0, GN_STATUS_BLOCK_CHANNELS);
  EXPECT_REFUSED(param, GN_DTYPE_F64, GN_STATUS_PARAM_DTYPE);
  EXPECT_REFUSED(param_stride, 1, GN_STATUS_PARAM_STRIDE);
  EXPECT_REFUSED(correction, 2, GN_STATUS_CORRECTION);
  EXPECT_REFUSED(eps, -1, GN_STATUS_EPS);
  EXPECT_REFUSED(eps, (double)NAN, GN_STATUS_EPS);
  EXPECT_REFUSED(sequence, -1, GN_STATUS_SEQUENCE);
  EXPECT_REFUSED(sequence, kN + 1, GN_STATUS_SEQUENCE);

  /* Numbers that a cast to 8 bits would make good ones, among others. */
  const int32_t unknown[] = {-1, -256, 99, 255, 256, 257, 65536, INT32_MAX, INT32_MIN};
  for (size_t i = 0; i < sizeof unknown / sizeof *unknown; ++i) {
    EXPECT_REFUSED(data, unknown[i], GN_STATUS_UNKNOWN_DATA);
    EXPECT_REFUSED(param, unknown[i], GN_STATUS_UNKNOWN_PARAM);
    EXPECT_REFUSED(layout, unknown[i], GN_STATUS_UNKNOWN_LAYOUT);
    EXPECT_REFUSED(activation, unknown[i], GN_STATUS_UNKNOWN_ACTIVATION);
  }
#undef EXPECT_REFUSED

  gn_spec one = make_spec();
  one.shape.s = 1;
  one.block = gn_instance_norm(one.shape);
  one.correction = 1;
  CHECK(gn_plan_make(&one, NULL, &plan) == GN_STATUS_TOO_FEW_ELEMENTS);

  /* None of them touched the plan. */
  const gn_plan zero = {0};
  CHECK(memcmp(&plan, &zero, sizeof plan) == 0);
}

static void test_struct_sizes(void) {
  struct newer_spec {
    gn_spec spec;
    int64_t added;
  } newer = {make_spec(), 0};
  gn_plan plan = {0};
  const size_t wrong[] = {0, 1, sizeof(size_t), sizeof(gn_spec) - 1, 1U << 20, SIZE_MAX};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; ++i) {
    gn_spec spec = make_spec();
    spec.struct_size = wrong[i];
    CHECK(gn_plan_make(&spec, NULL, &plan) == GN_STATUS_STRUCT_SIZE);
  }
  /* A caller of the first version, which ended with param_stride: nothing behind it is read. */
  gn_spec first = make_spec();
  first.struct_size = offsetof(gn_spec, sequence);
  first.sequence = first.shift = first.scale = first.lengths = -1;
  CHECK(gn_plan_make(&first, NULL, &plan) == GN_STATUS_OK);
  newer.spec.struct_size = sizeof newer;
  CHECK(gn_plan_make(&newer.spec, NULL, &plan) == GN_STATUS_OK);
  newer.added = 1;
  CHECK(gn_plan_make(&newer.spec, NULL, &plan) == GN_STATUS_STRUCT_SIZE);

  float x[kSize], y[kSize];
  fill(x);
  struct newer_args {
    gn_forward_args args;
    void* added;
  } newer_args = {make_args(x, y), NULL};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; ++i) {
    gn_forward_args args = make_args(x, y);
    args.struct_size = wrong[i] == sizeof(gn_spec) - 1 ? sizeof args - 1 : wrong[i];
    CHECK(gn_forward(&plan, &args, workspace, sizeof workspace, NULL) == GN_STATUS_STRUCT_SIZE);
  }
  gn_forward_args first_args = make_args(x, y);
  first_args.struct_size = offsetof(gn_forward_args, skip);
  first_args.skip = first_args.shift = first_args.lengths = (const void*)&newer;
  first_args.sum = x;
  CHECK(gn_forward(&plan, &first_args, workspace, sizeof workspace, NULL) == GN_STATUS_OK);
  newer_args.args.struct_size = sizeof newer_args;
  CHECK(gn_forward(&plan, &newer_args.args, workspace, sizeof workspace, NULL) == GN_STATUS_OK);
  newer_args.added = x;
  CHECK(gn_forward(&plan, &newer_args.args, workspace, sizeof workspace, NULL) ==
        GN_STATUS_STRUCT_SIZE);
}

static void test_forward_errors(void) {
  float memory[kSize + 1], y[kSize];
  float* const x = memory;
  double statistic[kBlocks] = {0};
  fill(x);
  for (int i = 0; i < kSize; ++i) y[i] = 42;
  gn_spec spec = make_spec();
  gn_plan plan = {0};
  CHECK(gn_plan_make(&spec, NULL, &plan) == GN_STATUS_OK);
  const gn_forward_args good = make_args(x, y);
  const size_t bytes = sizeof workspace;
  const gn_plan not_made = {0};

  CHECK(gn_forward(NULL, &good, workspace, bytes, NULL) == GN_STATUS_NOT_PLANNED);
  CHECK(gn_forward(&not_made, &good, workspace, bytes, NULL) == GN_STATUS_NOT_PLANNED);
  CHECK(gn_forward(&plan, NULL, workspace, bytes, NULL) == GN_STATUS_NULL_ARGS);
  gn_forward_args args = good;
  args.x = NULL;
  CHECK(gn_forward(&plan, &args, workspace, bytes, NULL) == GN_STATUS_NULL_X);
  args = good;
  args.y = NULL;
  CHECK(gn_forward(&plan, &args, workspace, bytes, NULL) == GN_STATUS_NULL_Y);
  args = good;
  args.given_rstd = statistic;
  CHECK(gn_forward(&plan, &args, workspace, bytes, NULL) == GN_STATUS_UNEXPECTED_GIVEN_RSTD);
  args = good;
  args.x = (const char*)x + 1;
  CHECK(gn_forward(&plan, &args, workspace, bytes, NULL) == GN_STATUS_MISALIGNED_X);
  args = good;
  args.y = x + 1;
  CHECK(gn_forward(&plan, &args, workspace, bytes, NULL) == GN_STATUS_OVERLAP_Y);
  args = good;
  args.gamma = y;
  CHECK(gn_forward(&plan, &args, workspace, bytes, NULL) == GN_STATUS_OVERLAP_Y);
  const gn_executor executors[] = {{NULL, NULL, 0}, {NULL, NULL, -1}, {NULL, NULL, 1025}};
  for (size_t i = 0; i < sizeof executors / sizeof *executors; ++i) {
    CHECK(gn_forward(&plan, &good, workspace, bytes, &executors[i]) == GN_STATUS_EXECUTOR);
  }
  if (gn_plan_workspace_bytes(&plan) > 0) {
    const size_t short_of = gn_plan_workspace_bytes(&plan) - 1;
    CHECK(gn_forward(&plan, &good, workspace, short_of, NULL) == GN_STATUS_WORKSPACE_TOO_SMALL);
    CHECK(gn_forward(&plan, &good, NULL, bytes, NULL) == GN_STATUS_WORKSPACE_TOO_SMALL);
  }

  spec.given_statistics = 1;
  CHECK(run(&spec, &good) == GN_STATUS_MISSING_GIVEN_RSTD);

  for (int i = 0; i < kSize; ++i) CHECK(y[i] == 42);
  CHECK(gn_forward(&plan, &good, workspace, bytes, NULL) == GN_STATUS_OK);
  CHECK(y[0] != 42);
}

static void test_plans(void) {
  const gn_plan not_made = {0};
  const gn_plan* const none[] = {NULL, &not_made};
  for (int i = 0; i < 2; ++i) {
    CHECK(gn_plan_blocks(none[i]) == 0);
    CHECK(gn_plan_block_elements(none[i]) == 0);
    CHECK(gn_plan_workspace_bytes(none[i]) == 0);
    CHECK(gn_plan_backward_workspace_bytes(none[i]) == 0);
    CHECK(strcmp(gn_plan_target(none[i]), "") == 0);
  }

  gn_spec spec = make_spec();
  gn_plan plan = {0};
  CHECK(gn_plan_make(&spec, NULL, &plan) == GN_STATUS_OK);
  CHECK(gn_plan_blocks(&plan) == kBlocks);
  CHECK(gn_plan_block_elements(&plan) == kM);
  CHECK(gn_active_target() != NULL && strcmp(gn_plan_target(&plan), gn_active_target()) == 0);

  /* A plan is a value; and one that is refused leaves it as it was. */
  const gn_plan copy = plan;
  spec.eps = -1;
  CHECK(gn_plan_make(&spec, NULL, &plan) == GN_STATUS_EPS);
  CHECK(memcmp(&plan, &copy, sizeof plan) == 0);
  float x[kSize], y[kSize], from_copy[kSize];
  fill(x);
  const gn_forward_args args = make_args(x, y), other = make_args(x, from_copy);
  CHECK(gn_forward(&plan, &args, workspace, sizeof workspace, NULL) == GN_STATUS_OK);
  CHECK(gn_forward(&copy, &other, workspace, sizeof workspace, NULL) == GN_STATUS_OK);
  CHECK(same_bits(y, from_copy, sizeof y));

  /* Empty: nothing is needed and nothing is written. */
  gn_spec empty = make_spec();
  empty.shape.n = 0;
  const gn_forward_args nothing = make_args(NULL, NULL);
  CHECK(run(&empty, &nothing) == GN_STATUS_OK);
}

struct counter {
  int64_t calls, tasks;
};

static void run_backwards(void* context, int64_t count, gn_task task, void* arg) {
  struct counter* const counter = context;
  counter->calls += 1;
  counter->tasks += count;
  for (int64_t i = count - 1; i >= 0; --i) task(arg, i);
}

static void test_executors(void) {
  enum { kLarge = 64 * 96 * 96 };
  static float x[kLarge], alone[kLarge], y[kLarge];
  for (int i = 0; i < kLarge; ++i) x[i] = (float)(i % 1013) / 64;
  gn_spec spec;
  gn_spec_init(&spec);
  spec.shape = (gn_shape){1, 64, 9216};
  spec.block = gn_group_norm(spec.shape, 32);
  const gn_forward_args args = make_args(x, alone);
  CHECK(run(&spec, &args) == GN_STATUS_OK);

  gn_plan plan = {0};
  CHECK(gn_plan_make(&spec, NULL, &plan) == GN_STATUS_OK);
  CHECK(gn_plan_workspace_bytes(&plan) <= sizeof workspace);
  struct counter counter = {0, 0};
  const gn_executor own = {run_backwards, &counter, 4};
  gn_forward_args to_y = make_args(x, y);
  CHECK(gn_forward(&plan, &to_y, workspace, sizeof workspace, &own) == GN_STATUS_OK);
  CHECK(counter.calls > 0 && counter.tasks > 1);
  CHECK(same_bits(y, alone, sizeof y));

  const gn_executor pool = gn_pool(3);
  CHECK(pool.threads == 3);
  CHECK(gn_pool(0).threads >= 1);
  memset(y, 0, sizeof y);
  CHECK(gn_forward(&plan, &to_y, workspace, sizeof workspace, &pool) == GN_STATUS_OK);
  CHECK(same_bits(y, alone, sizeof y));

  /* backward of the same sizes, with y as a dy. */
  double mean[32], rstd[32];
  gn_forward_args with_statistics = args;
  with_statistics.mean = mean;
  with_statistics.rstd = rstd;
  CHECK(run(&spec, &with_statistics) == GN_STATUS_OK);
  gn_backward_args backward;
  gn_backward_args_init(&backward);
  backward.x = x;
  backward.dy = y;
  backward.mean = mean;
  backward.rstd = rstd;
  backward.dx = alone;
  CHECK(gn_plan_backward_workspace_bytes(&plan) <= sizeof workspace);
  CHECK(gn_backward(&plan, &backward, workspace, sizeof workspace, NULL) == GN_STATUS_OK);
  static float dx[kLarge];
  backward.dx = dx;
  counter = (struct counter){0, 0};
  CHECK(gn_backward(&plan, &backward, workspace, sizeof workspace, &own) == GN_STATUS_OK);
  CHECK(counter.calls > 0 && counter.tasks > 1);
  CHECK(same_bits(dx, alone, sizeof dx));
}

/* Two halves of the positions, whose moments and sums are sent as bytes. */
static void test_pieces(void) {
  enum { kPositions = 40, kHalf = kPositions / 2, kChannels = 6 };
  float x[kChannels * kPositions], y[kChannels * kPositions], dx[kChannels * kPositions];
  double mean[3], rstd[3];
  for (int i = 0; i < kChannels * kPositions; ++i) x[i] = (float)(i % 37) / 8;
  gn_spec spec;
  gn_spec_init(&spec);
  spec.shape = (gn_shape){1, kChannels, kPositions};
  spec.block = gn_group_norm(spec.shape, 3);
  gn_forward_args args = make_args(x, y);
  args.mean = mean;
  args.rstd = rstd;
  CHECK(run(&spec, &args) == GN_STATUS_OK);

  spec.shape.s = kHalf;
  spec.given_statistics = 1;
  gn_plan plan = {0};
  CHECK(gn_plan_make(&spec, NULL, &plan) == GN_STATUS_OK);
  CHECK(sizeof(gn_moments) == 24 && sizeof(gn_block_sums) == 16);
  float half[2][kChannels * kHalf];
  unsigned char sent[2][3 * sizeof(gn_moments)];
  gn_moments moments[3], total[3] = {{0, 0, 0}, {0, 0, 0}, {0, 0, 0}};
  for (int h = 0; h < 2; ++h) {
    for (int c = 0; c < kChannels; ++c) {
      const float* const from = &x[(size_t)c * kPositions + (size_t)h * kHalf];
      memcpy(&half[h][(size_t)c * kHalf], from, kHalf * sizeof(float));
    }
    CHECK(gn_reduce(&plan, half[h], moments, workspace, sizeof workspace, NULL) == GN_STATUS_OK);
    memcpy(sent[h], moments, sizeof moments);
  }
  for (int h = 0; h < 2; ++h) {
    memcpy(moments, sent[h], sizeof moments);
    gn_merge(moments, 3, total);
  }
  double own_mean[3], own_rstd[3];
  CHECK(gn_finish(&plan, total, 3, own_mean, own_rstd) == GN_STATUS_OK);
  for (int g = 0; g < 3; ++g) {
    CHECK(total[g].count == 2 * kPositions);
    CHECK(fabs(own_mean[g] - mean[g]) < 1e-7 && fabs(own_rstd[g] / rstd[g] - 1) < 1e-7);
  }
  gn_backward_args backward;
  gn_backward_args_init(&backward);
  backward.mean = own_mean;
  backward.rstd = own_rstd;
  gn_block_sums sums[3], all[3] = {{0, 0}, {0, 0}, {0, 0}};
  for (int h = 0; h < 2; ++h) {
    backward.x = backward.dy = half[h];
    CHECK(gn_reduce_gradient(&plan, &backward, sums, workspace, sizeof workspace, NULL) ==
          GN_STATUS_OK);
    for (int g = 0; g < 3; ++g) {
      all[g].d += sums[g].d;
      all[g].e += sums[g].e;
    }
  }
  double dx_of_all = 0;
  for (int h = 0; h < 2; ++h) {
    backward.x = backward.dy = half[h];
    backward.dx = dx;
    CHECK(gn_apply_gradient(&plan, &backward, all, 2 * kPositions, NULL) == GN_STATUS_OK);
    for (int i = 0; i < kChannels * kHalf; ++i) dx_of_all += (double)dx[i];
  }
  CHECK(fabs(dx_of_all) < 1e-4); /* the gradient of a centred norm adds up to nothing */
  CHECK(gn_apply_gradient(&plan, &backward, all, 1, NULL) == GN_STATUS_COUNT);
  CHECK(gn_apply_gradient(&plan, NULL, all, 80, NULL) == GN_STATUS_NULL_ARGS);
  CHECK(gn_reduce_gradient(&plan, NULL, sums, NULL, 0, NULL) == GN_STATUS_NULL_ARGS);
  CHECK(gn_reduce(NULL, x, moments, NULL, 0, NULL) == GN_STATUS_NOT_PLANNED);
  CHECK(gn_finish(NULL, total, 3, own_mean, own_rstd) == GN_STATUS_NOT_PLANNED);
}

int main(void) {
  test_versions();
  test_blocks();
  test_suggested_groups();
  test_targets();
  test_defaults();
  test_names();
  test_status_strings();
  test_forward();
  test_options_arrive();
  test_neighbours();
  test_lengths();
  test_backward_is_the_slope_of_forward();
  test_backward_of_neighbours();
  test_backward_outputs();
  test_backward_errors();
  test_spec_errors();
  test_struct_sizes();
  test_forward_errors();
  test_plans();
  test_executors();
  test_pieces();
  printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
