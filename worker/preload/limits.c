/* Loaded into CRIU for a dump: what it may not ask of a process, it reads where anybody may.
 *
 * CRIU asks for the limits of each process by prlimit(2), and of one with another user or group the kernel tells them only to
 * CAP_SYS_RESOURCE. The same numbers are in /proc/PID/limits, for everybody. Only a question that was refused is answered
 * so, never an order to change something. CRIU asks through syscall(). System V IPC is asked for in a way of its own.
 */
#include "call.h"
#include "ipc.h"

#define REFUSED 1 /* EPERM */
#define HERE -100 /* AT_FDCWD */
#define LIMITS 16
#define UNLIMITED ~0UL

#if defined(__x86_64__)
#define NR_READ 0
#define NR_CLOSE 3
#define NR_OPENAT 257
#define NR_PRLIMIT64 302
#elif defined(__aarch64__)
#define NR_READ 63
#define NR_CLOSE 57
#define NR_OPENAT 56
#define NR_PRLIMIT64 261
#endif

/* Where the two values begin in a line, and where the second ends at the latest (fs/proc/base.c, proc_pid_limits). */
#define SOFT 26
#define HARD 47
#define WIDTH 68

struct limit {
    unsigned long soft, hard;
};

/* `unlimited`, or digits. */
static int value(const char *text, unsigned long *found) {
    if (*text == 'u') {
        *found = UNLIMITED;
        return 1;
    }
    *found = 0;
    const char *digit = text;
    for (; *digit >= '0' && *digit <= '9'; digit++)
        *found = *found * 10 + (unsigned long)(*digit - '0');
    return digit != text;
}

/* The line after the heading that has this number, if it is whole. */
static int limit(const char *text, long length, long number, struct limit *found) {
    long line = -1, begin = 0;
    for (long at = 0; at < length; at++) {
        if (text[at] != '\n')
            continue;
        if (line == number)
            return at - begin >= WIDTH && value(text + begin + SOFT, &found->soft) && value(text + begin + HARD, &found->hard);
        line++;
        begin = at + 1;
    }
    return 0;
}

static long limit_of(long pid, long number, struct limit *found) {
    char path[32] = "/proc/", digits[20], text[4096];
    long at = 6, count = 0, length = 0, got;
    if (pid <= 0 || number < 0 || number >= LIMITS)
        return -REFUSED;
    for (; pid; pid /= 10)
        digits[count++] = (char)('0' + pid % 10);
    while (count)
        path[at++] = digits[--count];
    for (const char *rest = "/limits"; *rest; rest++)
        path[at++] = *rest;
    path[at] = 0;
    long file = call(NR_OPENAT, HERE, (long)path, 0, 0, 0, 0);
    if (file < 0)
        return -REFUSED;
    while (length < (long)sizeof text && (got = call(NR_READ, file, (long)(text + length), (long)sizeof text - length, 0, 0, 0)) > 0)
        length += got;
    call(NR_CLOSE, file, 0, 0, 0, 0, 0);
    struct limit its;
    if (!limit(text, length, number, &its))
        return -REFUSED;
    *found = its;
    return 0;
}

long syscall(long number, long a, long b, long c, long d, long e, long f) {
    long result = call(number, a, b, c, d, e, f);
    if (number == NR_PRLIMIT64 && result == -REFUSED && c == 0 && d != 0)
        result = limit_of(a, b, (struct limit *)d);
    return answer(result);
}
