/* Preloaded into a server: what it asks of the file data.mdb fails, or is written down.
 *
 * FAULTS names a directory. While the file "write" is in it, writes fail with the errno that it contains; "sync" does
 * the same for syncs. While "log" is in it, each write and sync that succeeded is appended to it:
 * int64 offset (-1: a sync), int64 length, int64 synced at once (O_DSYNC), the bytes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int named(char *path, const char *name)
{
    const char *directory = getenv("FAULTS");
    return directory && snprintf(path, PATH_MAX, "%s/%s", directory, name) < PATH_MAX;
}

static int is_data(int fd)
{
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    return length >= 9 && memcmp(path + length - 9, "/data.mdb", 9) == 0;
}

/* The errno that a call is to fail with, or 0. */
static int fault(const char *name)
{
    char path[PATH_MAX], text[16] = "";
    if (!named(path, name))
        return 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    return length > 0 ? atoi(text) : 0;
}

static void note(int64_t offset, const void *data, int64_t length, int64_t synced)
{
    char path[PATH_MAX];
    if (!named(path, "log"))
        return;
    int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (fd < 0)
        return;
    int64_t head[3] = {offset, length, synced};
    struct iovec parts[2] = {{head, sizeof head}, {(void *) data, (size_t) length}};
    if (REAL(writev)(fd, parts, length ? 2 : 1) < 0)
        abort();
    close(fd);
}

static void note_all(int fd, const struct iovec *parts, int count, int64_t offset, int64_t written)
{
    int synced = (fcntl(fd, F_GETFL) & O_DSYNC) != 0;
    for (int i = 0; i < count && written > 0; i++) {
        int64_t part = (int64_t) parts[i].iov_len < written ? (int64_t) parts[i].iov_len : written;
        note(offset, parts[i].iov_base, part, synced);
        offset += part;
        written -= part;
    }
}

#define FAIL(what)                       \
    do {                                 \
        int error = fault(what);         \
        if (error) {                     \
            errno = error;               \
            return -1;                   \
        }                                \
    } while (0)

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
    if (!is_data(fd))
        return REAL(pwritev)(fd, parts, count, offset);
    FAIL("write");
    pthread_mutex_lock(&lock);
    ssize_t written = REAL(pwritev)(fd, parts, count, offset);
    note_all(fd, parts, count, offset, written);
    pthread_mutex_unlock(&lock);
    return written;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
    struct iovec part = {(void *) data, length};
    return pwritev(fd, &part, 1, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    if (!is_data(fd))
        return REAL(writev)(fd, parts, count);
    FAIL("write");
    pthread_mutex_lock(&lock);
    off_t offset = lseek(fd, 0, SEEK_CUR);
    ssize_t written = REAL(writev)(fd, parts, count);
    note_all(fd, parts, count, offset, written);
    pthread_mutex_unlock(&lock);
    return written;
}

static int synced(int result)
{
    if (result == 0) {
        pthread_mutex_lock(&lock);
        note(-1, NULL, 0, 1);
        pthread_mutex_unlock(&lock);
    }
    return result;
}

int fdatasync(int fd)
{
    if (!is_data(fd))
        return REAL(fdatasync)(fd);
    FAIL("sync");
    return synced(REAL(fdatasync)(fd));
}

int fsync(int fd)
{
    if (!is_data(fd))
        return REAL(fsync)(fd);
    FAIL("sync");
    return synced(REAL(fsync)(fd));
}

int msync(void *start, size_t length, int flags)
{
    FAIL("sync");
    return synced(REAL(msync)(start, length, flags));
}
