/* A plugin that tells which groupnorm it has. */
#include <groupnorm/groupnorm.h>

const char* plugin_groupnorm(void);
const char* plugin_groupnorm(void) { return gn_version(); }
