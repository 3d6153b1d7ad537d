/* Between a process and its disk and clock, for LD_PRELOAD: it writes down what the process writes and syncs below
 * HEADWATER_FAULT_ROOT into the file HEADWATER_FAULT_TRACE, in order, and can fail. `faults.py` reads the trace.
 *
 * HEADWATER_FAULT_FAIL=n: the n-th sync of a file of the root and every later one returns EIO, and its bytes count as
 * not on disk. HEADWATER_FAULT_SHIFT: a file; the number in it is added, in ms, to the wall clock.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { NAME = 1, WRITE, DURABLE, SYNC, FAILED, TRUNCATE, RENAME, UNLINK, MARK };
enum { MOST = 4096 };

struct entry { uint32_t op, file; uint64_t at, size; };  /* and `size` bytes behind it, but for DURABLE to TRUNCATE */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int trace = -1, syncs, fail_at;
static char root[PATH_MAX];
static uint32_t file_of[MOST];  /* number of the path behind a descriptor; 0: not ours */
static char dsync[MOST];
static char *names[MOST];
static uint32_t named;

static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static int (*real_open)(const char *, int, ...);
static int (*real_openat)(int, const char *, int, ...);
static int (*real_close)(int);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_ftruncate)(int, off_t);
static int (*real_rename)(const char *, const char *);
static int (*real_unlink)(const char *);
static int (*real_clock_gettime)(clockid_t, struct timespec *);

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) { fprintf(stderr, "faults.c: no %s\n", name); abort(); }
    return found;
}

__attribute__((constructor)) static void begin(void) {
    real_write = real("write"); real_writev = real("writev"); real_pwrite = real("pwrite");
    real_open = real("open"); real_openat = real("openat"); real_close = real("close");
    real_fsync = real("fsync"); real_fdatasync = real("fdatasync"); real_ftruncate = real("ftruncate");
    real_rename = real("rename"); real_unlink = real("unlink"); real_clock_gettime = real("clock_gettime");
    const char *path = getenv("HEADWATER_FAULT_TRACE"), *below = getenv("HEADWATER_FAULT_ROOT");
    const char *fail = getenv("HEADWATER_FAULT_FAIL");
    if (fail) fail_at = atoi(fail);
    if (!path || !below || !realpath(below, root)) return;
    strncat(root, "/", sizeof root - strlen(root) - 1);
    trace = real_open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (trace < 0) { perror(path); abort(); }
}

static void put(uint32_t op, uint32_t file, uint64_t at, const void *data, uint64_t size) {
    struct entry head = { op, file, at, size };
    struct iovec parts[2] = { { &head, sizeof head }, { (void *)data, data ? size : 0 } };
    ssize_t whole = (ssize_t)(sizeof head + parts[1].iov_len);
    if (real_writev(trace, parts, data ? 2 : 1) != whole) { perror("faults.c: trace"); abort(); }
}

static uint32_t number(const char *path) {  /* of a path below the root; 0: it is not there */
    char whole[PATH_MAX], folder[PATH_MAX];
    if (trace < 0) return 0;
    if (!realpath(path, whole)) {  /* it does not exist (any more): its folder does */
        const char *slash = strrchr(path, '/');
        size_t length = slash ? (size_t)(slash - path) : 1;
        memcpy(folder, slash ? path : ".", length);
        folder[length] = 0;
        if (!realpath(length ? folder : "/", whole)) return 0;
        strncat(whole, "/", sizeof whole - strlen(whole) - 1);
        strncat(whole, slash ? slash + 1 : path, sizeof whole - strlen(whole) - 1);
    }
    size_t below = strlen(root);
    if (strncmp(whole, root, below) && (strlen(whole) != below - 1 || strncmp(whole, root, below - 1))) return 0;
    const char *name = strlen(whole) < below ? "." : whole + below;
    for (uint32_t n = 1; n <= named; n++) if (!strcmp(names[n], name)) return n;
    if (named + 1 == MOST) { fprintf(stderr, "faults.c: too many files\n"); abort(); }
    names[++named] = strdup(name);
    put(NAME, named, 0, name, strlen(name));
    return named;
}

static void opened(int fd, const char *path, int flags) {
    if (trace < 0 || fd < 0 || fd >= MOST) return;
    int before = errno;
    pthread_mutex_lock(&lock);
    file_of[fd] = number(path);
    dsync[fd] = (flags & O_DSYNC) != 0;
    if (file_of[fd] && (flags & O_TRUNC)) put(TRUNCATE, file_of[fd], 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    errno = before;
}

static int mode_of(int flags, va_list more) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(more, int) : 0; }

int open(const char *path, int flags, ...) {
    va_list more; va_start(more, flags); int mode = mode_of(flags, more); va_end(more);
    int fd = real_open(path, flags, mode);
    opened(fd, path, flags);
    return fd;
}
int open64(const char *path, int flags, ...) __attribute__((alias("open")));

int openat(int at, const char *path, int flags, ...) {
    va_list more; va_start(more, flags); int mode = mode_of(flags, more); va_end(more);
    int fd = real_openat(at, path, flags, mode);
    if (at == AT_FDCWD || path[0] == '/') opened(fd, path, flags);
    return fd;
}
int openat64(int at, const char *path, int flags, ...) __attribute__((alias("openat")));

int close(int fd) {
    if (fd >= 0 && fd < MOST) file_of[fd] = 0;
    return real_close(fd);
}

static uint32_t ours(int fd) { return trace >= 0 && fd >= 0 && fd < MOST ? file_of[fd] : 0; }

static uint64_t place(int fd) {  /* where `write` will write */
    if (fcntl(fd, F_GETFL) & O_APPEND) { struct stat s; fstat(fd, &s); return (uint64_t)s.st_size; }
    return (uint64_t)lseek(fd, 0, SEEK_CUR);
}

static void before(int fd, uint64_t at, const void *data, size_t size) {
    pthread_mutex_lock(&lock);
    put(WRITE, ours(fd), at, data, size);
    pthread_mutex_unlock(&lock);
}

static void after(int fd, uint64_t at, ssize_t done) {  /* a descriptor with O_DSYNC: those bytes are on disk now */
    int kept = errno;
    pthread_mutex_lock(&lock);
    if (done > 0 && dsync[fd]) put(DURABLE, ours(fd), at, NULL, (uint64_t)done);
    pthread_mutex_unlock(&lock);
    errno = kept;
}

ssize_t write(int fd, const void *data, size_t size) {
    if (!ours(fd)) return real_write(fd, data, size);
    uint64_t at = place(fd);
    before(fd, at, data, size);
    ssize_t done = real_write(fd, data, size);
    after(fd, at, done);
    return done;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (!ours(fd)) return real_writev(fd, parts, count);
    uint64_t at = place(fd), from = at;
    for (int k = 0; k < count; at += parts[k++].iov_len) before(fd, at, parts[k].iov_base, parts[k].iov_len);
    ssize_t done = real_writev(fd, parts, count);
    after(fd, from, done);
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    if (!ours(fd)) return real_pwrite(fd, data, size, at);
    before(fd, (uint64_t)at, data, size);
    ssize_t done = real_pwrite(fd, data, size, at);
    after(fd, (uint64_t)at, done);
    return done;
}
ssize_t pwrite64(int fd, const void *data, size_t size, off_t at) __attribute__((alias("pwrite")));

static int synced(int fd, int (*sync)(int)) {
    uint32_t file = ours(fd);
    if (!file) return sync(fd);
    pthread_mutex_lock(&lock);
    int fails = fail_at && ++syncs >= fail_at;
    struct timespec now;
    real_clock_gettime(CLOCK_MONOTONIC, &now);
    if (fails) put(FAILED, file, (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec, NULL, 0);
    pthread_mutex_unlock(&lock);
    if (fails) { errno = EIO; return -1; }
    int done = sync(fd), kept = errno;
    pthread_mutex_lock(&lock);
    if (!done) put(SYNC, file, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    errno = kept;
    return done;
}

int fsync(int fd) { return synced(fd, real_fsync); }
int fdatasync(int fd) { return synced(fd, real_fdatasync); }

int ftruncate(int fd, off_t size) {
    pthread_mutex_lock(&lock);
    if (ours(fd)) put(TRUNCATE, ours(fd), (uint64_t)size, NULL, 0);
    pthread_mutex_unlock(&lock);
    return real_ftruncate(fd, size);
}
int ftruncate64(int fd, off_t size) __attribute__((alias("ftruncate")));

int rename(const char *from, const char *to) {
    pthread_mutex_lock(&lock);
    uint32_t file = number(from), other = number(to);
    if (file && other) put(RENAME, file, other, NULL, 0);
    pthread_mutex_unlock(&lock);
    return real_rename(from, to);
}

int unlink(const char *path) {
    pthread_mutex_lock(&lock);
    uint32_t file = number(path);
    if (file) put(UNLINK, file, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return real_unlink(path);
}

void headwater_fault_mark(uint64_t value) {  /* the process says how far it is */
    pthread_mutex_lock(&lock);
    if (trace >= 0) put(MARK, 0, value, NULL, 0);
    pthread_mutex_unlock(&lock);
}

int clock_gettime(clockid_t which, struct timespec *now) {
    static int64_t *shift;
    static int looked;
    int done = real_clock_gettime ? real_clock_gettime(which, now) : ((int (*)(clockid_t, struct timespec *))real("clock_gettime"))(which, now);
    if (which != CLOCK_REALTIME) return done;
    if (!looked) {
        looked = 1;
        const char *path = getenv("HEADWATER_FAULT_SHIFT");
        int fd = path && real_open ? real_open(path, O_RDONLY | O_CLOEXEC) : -1;
        if (fd >= 0) {
            void *map = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
            if (map != MAP_FAILED) shift = map;
            real_close(fd);
        }
    }
    if (shift) {
        int64_t ns = (int64_t)now->tv_nsec + (*shift % 1000) * 1000000;
        now->tv_sec += *shift / 1000;
        while (ns < 0) { ns += 1000000000; now->tv_sec--; }
        while (ns >= 1000000000) { ns -= 1000000000; now->tv_sec++; }
        now->tv_nsec = ns;
    }
    return done;
}
