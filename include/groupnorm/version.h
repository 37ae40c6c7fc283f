/* The version, in the one place that CMake and the Python build read it from. */
#ifndef GROUPNORM_VERSION_H
#define GROUPNORM_VERSION_H

#define GROUPNORM_VERSION_MAJOR 0
#define GROUPNORM_VERSION_MINOR 1
#define GROUPNORM_VERSION_PATCH 0
#define GROUPNORM_VERSION "0.1.0"

#endif
