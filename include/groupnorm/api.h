/* GROUPNORM_API marks what a shared library exports; everything else stays hidden. Of a static
 * library all does: a plugin that links one neither exports it nor takes that of another plugin. */
#ifndef GROUPNORM_API_H
#define GROUPNORM_API_H

#if defined(_WIN32) && defined(GROUPNORM_SHARED)
#ifdef GROUPNORM_BUILDING
#define GROUPNORM_API __declspec(dllexport)
#else
#define GROUPNORM_API __declspec(dllimport)
#endif
#elif defined(__GNUC__) && defined(GROUPNORM_SHARED)
#define GROUPNORM_API __attribute__((visibility("default")))
#else
#define GROUPNORM_API
#endif

#endif
