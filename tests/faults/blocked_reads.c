/* Blocks positional reads of files whose path has a given text in it, for as long as a control file exists. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static void block(int fd) {
    const char *text = getenv("BLOCK_READS_OF"), *control = getenv("BLOCK_READS_WHILE");
    char link[64], path[4096];
    if (!text || !control) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return;
    path[length] = 0;
    while (strstr(path, text) && !access(control, F_OK)) usleep(10000);
}

/* BLOCK_READS_FAIL: so many reads of such files fail with EIO first, over all processes that share the counter. */
static int fail(int fd) {
    const char *text = getenv("BLOCK_READS_OF"), *folder = getenv("FAIL_READS_WHILE");
    char link[64], path[4096];
    if (!text || !folder) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, text) && !access(folder, F_OK);
}

#define READ(name, ...)                                                                        \
    ssize_t name(int fd, const struct iovec *parts, int count, off_t offset __VA_ARGS__) {      \
        block(fd);                                                                              \
        if (fail(fd)) { errno = EIO; return -1; }                                               \
        static ssize_t (*next)(int, const struct iovec *, int, off_t, int);                     \
        if (!next) *(void **)&next = dlsym(RTLD_NEXT, #name);                                   \
        return next(fd, parts, count, offset, FLAGS);                                           \
    }

#define FLAGS 0
READ(preadv)
READ(preadv64)
#undef FLAGS
#define FLAGS flags
READ(preadv2, , int flags)
READ(preadv64v2, , int flags)
