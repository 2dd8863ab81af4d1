// A disk that fails once: loaded before the C library, it lets the n-th call on files below a folder fail.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static char folder[4096];
static atomic_long calls = 0;
static long failing = -1;
static int number = 0;
static char failed[64];

void fail_at(const char *below, long call, int error) {
  strncpy(folder, below, sizeof(folder) - 1);
  atomic_store(&calls, 0);
  failed[0] = 0;
  number = error;
  failing = call;
}
long counted(void) { return atomic_load(&calls); }
const char *what_failed(void) { return failed; }

static int fails(const char *name, const char *path) {
  if (failing < 0 || !folder[0] || !path || strncmp(path, folder, strlen(folder))) return 0;
  if (atomic_fetch_add(&calls, 1) != failing) return 0;
  snprintf(failed, sizeof(failed), "%s", name);
  errno = number;
  return 1;
}
static int fails_open(const char *name, int descriptor) {
  char link[64], path[4096];
  if (failing < 0) return 0;
  snprintf(link, sizeof(link), "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof(path) - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return fails(name, path);
}

#define REAL(type, name) __typeof__(type) real = (__typeof__(type))dlsym(RTLD_NEXT, name)
#define BY_PATH(name, parameters, arguments, path)                      \
  int name parameters {                                                 \
    REAL(int(*) parameters, #name);                                     \
    return fails(#name, path) ? -1 : real arguments;                    \
  }
#define BY_DESCRIPTOR(type, name, parameters, arguments, descriptor)    \
  type name parameters {                                                \
    REAL(type(*) parameters, #name);                                    \
    return fails_open(#name, descriptor) ? -1 : real arguments;         \
  }
#define OPEN(name)                                                      \
  int name(const char *path, int flags, ...) {                          \
    va_list rest;                                                       \
    va_start(rest, flags);                                              \
    mode_t mode = va_arg(rest, mode_t);                                 \
    va_end(rest);                                                       \
    REAL(int (*)(const char *, int, ...), #name);                       \
    return fails(#name, path) ? -1 : real(path, flags, mode);           \
  }

OPEN(open)
OPEN(open64)
BY_PATH(mkdir, (const char *path, mode_t mode), (path, mode), path)
BY_PATH(rename, (const char *from, const char *to), (from, to), from)
BY_PATH(link, (const char *from, const char *to), (from, to), from)
BY_PATH(unlink, (const char *path), (path), path)
BY_PATH(rmdir, (const char *path), (path), path)
BY_DESCRIPTOR(ssize_t, write, (int d, const void *p, size_t n), (d, p, n), d)
BY_DESCRIPTOR(ssize_t, pwrite, (int d, const void *p, size_t n, off_t o), (d, p, n, o), d)
BY_DESCRIPTOR(ssize_t, read, (int d, void *p, size_t n), (d, p, n), d)
BY_DESCRIPTOR(int, fsync, (int d), (d), d)
BY_DESCRIPTOR(int, flock, (int d, int operation), (d, operation), d)
BY_DESCRIPTOR(int, ftruncate, (int d, off_t n), (d, n), d)
