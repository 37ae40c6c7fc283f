/* GROUPNORM_API marks what a shared library exports; everything else stays hidden. */
#ifndef GROUPNORM_API_H
#define GROUPNORM_API_H

#if defined(_WIN32) && defined(GROUPNORM_SHARED)
#ifdef GROUPNORM_BUILDING
#define GROUPNORM_API __declspec(dllexport)
#else
#define GROUPNORM_API __declspec(dllimport)
#endif
#elif defined(__GNUC__)
#define GROUPNORM_API __attribute__((visibility("default")))
#else
#define GROUPNORM_API
#endif

#endif
