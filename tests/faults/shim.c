/* Counts the calls that change files, and lets the n-th fail or kill the process.

   LD_PRELOAD=shim.so FAULT_AT=7 FAULT_DO=28 (an errno) or FAULT_DO=kill; FAULT_LOG=FILE gets the
   count at the end. Only files of the folder FAULT_IN count. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int count;

static int hit(void) {
    const char *at = getenv("FAULT_AT"), *what = getenv("FAULT_DO"), *log = getenv("FAULT_LOG");
    count++;
    if (log) {
        __typeof__(open) *plain = (__typeof__(open) *)dlsym(RTLD_NEXT, "open");
        __typeof__(write) *put = (__typeof__(write) *)dlsym(RTLD_NEXT, "write");
        int file = plain(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
        if (file >= 0) { put(file, ".", 1); close(file); }
    }
    if (!at || !what || count != atoi(at)) return 0;
    if (!strcmp(what, "kill")) kill(getpid(), SIGKILL);
    errno = atoi(what);
    return 1;
}

static int ours(const char *path) {
    const char *in = getenv("FAULT_IN");
    char real[PATH_MAX], *slash;
    if (!in || !path) return 0;
    snprintf(real, sizeof real, "%s", path);
    if (path[0] != '/') {
        char here[PATH_MAX];
        if (!getcwd(here, sizeof here)) return 0;
        if (snprintf(real, sizeof real, "%s/%s", here, path) >= (int)sizeof real) return 0;
    }
    slash = strrchr(real, '/');
    return slash && !strncmp(real, in, strlen(in));
}

static int ours_fd(int fd) {
    char name[64], path[PATH_MAX];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return ours(path);
}

#define NEXT(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *data, size_t size) {
    NEXT(write);
    if (ours_fd(fd) && hit()) return -1;
    return real(fd, data, size);
}

static int opened(const char *name, const char *path, int flags, mode_t mode) {
    __typeof__(open) *real = (__typeof__(open) *)dlsym(RTLD_NEXT, name);
    if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && ours(path) && hit()) return -1;
    return real(path, flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list rest; va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t); va_end(rest);
    return opened("open", path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list rest; va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t); va_end(rest);
    return opened("open64", path, flags, mode);
}

int fsync(int fd) {
    NEXT(fsync);
    if (ours_fd(fd) && hit()) return -1;
    return real(fd);
}

int rename(const char *from, const char *to) {
    NEXT(rename);
    if (ours(to) && hit()) return -1;
    return real(from, to);
}

int ftruncate64(int fd, off64_t size) {
    NEXT(ftruncate64);
    if (ours_fd(fd) && hit()) return -1;
    return real(fd, size);
}

int link(const char *from, const char *to) {
    NEXT(link);
    if (ours(to) && hit()) return -1;
    return real(from, to);
}

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
    NEXT(copy_file_range);
    if (ours_fd(out) && hit()) return -1;
    return real(in, from, out, to, size, flags);
}
