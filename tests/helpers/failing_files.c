/* To be preloaded: one operation on files below a folder fails, whatever library asks for it.

   Operations are those that change something, as in faults.py: a file opened for writing, a write,
   an fsync, a renaming, a removal, a new folder. fail_at(folder, n, error) makes the n-th from then
   on fail with this errno, or (0) kills the process before it; a write has then written half. With
   -error it sends the process this signal, and the operation is done. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static char folder[PATH_MAX];
static atomic_long done;
static long last;
static int with;

void fail_at(const char *below, long n, int error) {
    snprintf(folder, sizeof folder, "%s", below);
    last = n;
    with = error;
    done = 0;
}

long operations(void) { return done; }

/* Is this the operation that is to fail? A relative path is one below the folder of a handle. */
static int fails(int handle, const char *path) {
    char link[40], place[PATH_MAX];
    ssize_t length;
    if (!folder[0]) return 0;
    if (!path || path[0] != '/') {
        if (handle == AT_FDCWD) return 0;
        snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
        length = readlink(link, place, sizeof place - 1);
        if (length < 0) return 0;
        place[length] = 0;
        path = place;
    }
    if (strncmp(path, folder, strlen(folder)) || ++done != last) return 0;
    if (with < 0) kill(getpid(), -with);
    return with >= 0;
}

static int failed(void) {
    if (!with) kill(getpid(), SIGKILL);
    errno = with;
    return -1;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)

#define OPENS(name)                                                                   \
    int name(const char *path, int flags, ...) {                                      \
        va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more); \
        REAL(name);                                                                   \
        int changes = flags & (O_WRONLY | O_RDWR | O_CREAT);                          \
        return changes && fails(AT_FDCWD, path) ? failed() : real(path, flags, mode); \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name)                                                                \
    int name(int at, const char *path, int flags, ...) {                              \
        va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more); \
        REAL(name);                                                                   \
        int changes = flags & (O_WRONLY | O_RDWR | O_CREAT);                          \
        return changes && fails(at, path) ? failed() : real(at, path, flags, mode);   \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

ssize_t write(int handle, const void *content, size_t size) {
    REAL(write);
    if (!fails(handle, NULL)) return real(handle, content, size);
    real(handle, content, size / 2);
    return failed();
}

#define WRITES_AT(name, offset_t)                                                     \
    ssize_t name(int handle, const void *content, size_t size, offset_t place) {      \
        REAL(name);                                                                   \
        if (!fails(handle, NULL)) return real(handle, content, size, place);          \
        real(handle, content, size / 2, place);                                       \
        return failed();                                                              \
    }
WRITES_AT(pwrite, off_t)
WRITES_AT(pwrite64, off64_t)

#define BY_HANDLE(name) \
    int name(int handle) { REAL(name); return fails(handle, NULL) ? failed() : real(handle); }
BY_HANDLE(fsync)
BY_HANDLE(fdatasync)

#define BY_PATH(name) \
    int name(const char *path) { REAL(name); return fails(AT_FDCWD, path) ? failed() : real(path); }
BY_PATH(unlink)
BY_PATH(rmdir)
BY_PATH(remove)

int unlinkat(int at, const char *path, int flags) {
    REAL(unlinkat);
    return fails(at, path) ? failed() : real(at, path, flags);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    return fails(AT_FDCWD, path) ? failed() : real(path, mode);
}

int mkdirat(int at, const char *path, mode_t mode) {
    REAL(mkdirat);
    return fails(at, path) ? failed() : real(at, path, mode);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    return fails(AT_FDCWD, from) ? failed() : real(from, to);
}

int renameat(int at, const char *from, int to_at, const char *to) {
    REAL(renameat);
    return fails(at, from) ? failed() : real(at, from, to_at, to);
}
