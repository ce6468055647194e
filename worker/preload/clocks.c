/* Loaded before the C library: the monotonic clocks go on where they were when the program was stored on another host.
 *
 * CLOCK_MONOTONIC (with _RAW and _COARSE) and CLOCK_BOOTTIME count from the boot of a host. What is told here is the host's clock
 * plus an offset, and a time that a program names goes to the kernel less that offset. The offsets are in a page of this file
 * that nobody writes to while it is mapped: CRIU does not store such a page, it maps the file again. So the worker writes the
 * file anew before a resume, and every program of the job, and every one that is started later, has the new offsets from
 * its first instruction on, without a call, a lock or a variable.
 *
 * A wait until an absolute time may be under way at the freeze, and the kernel or the C library begins it again with the number
 * it was given, which means another time on the next host. Therefore these numbers lie in `waits`, where the worker finds
 * them in the stopped processes, and writes them anew before anybody runs. Whatever is worked out with an offset is worked out again if the
 * offset is another one afterwards.
 *
 * Timers need no such care: CRIU stores what is left of them.
 */
#include "call.h"
#ifdef DENY_IO_URING
#include "io_uring.h"
#endif

#if defined(__x86_64__)
#define NR_READ 0
#define NR_CLOSE 3
#define NR_GETPID 39
#define NR_GETTID 186
#define NR_FUTEX 202
#define NR_TIMER_CREATE 222
#define NR_TIMER_SETTIME 223
#define NR_TIMER_DELETE 226
#define NR_CLOCK_GETTIME 228
#define NR_CLOCK_NANOSLEEP 230
#define NR_TGKILL 234
#define NR_OPENAT 257
#define NR_TIMERFD_SETTIME 286
#define VDSO_CLOCK_GETTIME "__vdso_clock_gettime"
#elif defined(__aarch64__)
#define NR_OPENAT 56
#define NR_CLOSE 57
#define NR_READ 63
#define NR_TIMERFD_SETTIME 86
#define NR_FUTEX 98
#define NR_TIMER_CREATE 107
#define NR_TIMER_SETTIME 110
#define NR_TIMER_DELETE 111
#define NR_CLOCK_GETTIME 113
#define NR_CLOCK_NANOSLEEP 115
#define NR_TGKILL 131
#define NR_GETPID 172
#define NR_GETTID 178
#define VDSO_CLOCK_GETTIME "__kernel_clock_gettime"
#endif
#define NR_FUTEX_WAITV 449 /* these two on every architecture */
#define NR_FUTEX_WAIT 455

#define NO_SUCH_PROCESS 3 /* ESRCH */
#define INVALID 22        /* EINVAL */
#define NOT_THERE 38      /* ENOSYS */
#define ABSTIME 1         /* TIMER_ABSTIME, TFD_TIMER_ABSTIME */
#define HERE -100         /* AT_FDCWD */
#define SECOND 1000000000L

#define CLOCK_REALTIME 0
#define CLOCK_MONOTONIC 1
#define CLOCK_MONOTONIC_RAW 4
#define CLOCK_MONOTONIC_COARSE 6
#define CLOCK_BOOTTIME 7
#define CLOCK_BOOTTIME_ALARM 9

/* linux/futex.h: what waits until an absolute time, of CLOCK_MONOTONIC unless it says otherwise. */
#define FUTEX_COMMAND 127
#define FUTEX_WALL_CLOCK 256
#define FUTEX_WAIT_BITSET 9
#define FUTEX_WAIT_REQUEUE_PI 11
#define FUTEX_LOCK_PI2 13

#define HIDDEN __attribute__((visibility("hidden")))
#define WEAK __attribute__((weak))

extern unsigned long getauxval(unsigned long) WEAK;
extern void *dlsym(void *, const char *) WEAK;
extern char *dlerror(void) WEAK;
#define NEXT ((void *)-1L) /* RTLD_NEXT */

struct timespec {
    long seconds, nanoseconds;
};
struct itimerspec {
    struct timespec interval, value;
};

/* Which offset counts. */
enum kind { MONOTONIC, RAW, BOOTTIME, KINDS, NONE = -1 };

static inline enum kind kind_of(int clock) {
    switch (clock) {
    case CLOCK_MONOTONIC:
    case CLOCK_MONOTONIC_COARSE: return MONOTONIC;
    case CLOCK_MONOTONIC_RAW: return RAW;
    case CLOCK_BOOTTIME:
    case CLOCK_BOOTTIME_ALARM: return BOOTTIME;
    default: return NONE;
    }
}

/* What the worker writes (worker/src/clocks.rs), in a page of its own that is never written to here. The last number says where
 * `waits` is from here. */
struct numbers {
    char magic[16];
    long offsets[KINDS]; /* nanoseconds that the program's clocks are ahead of the host's */
    long to_waits;
};
extern const volatile struct numbers reprieve_numbers HIDDEN;
__asm__(".pushsection .reprieve,\"a\",%progbits\n"
        ".balign 4096\n"
        "reprieve_numbers:\n"
        ".ascii \"reprieve clocks1\"\n"
        ".quad 0, 0, 0\n"
        ".quad reprieve_waits - reprieve_numbers\n"
        ".balign 4096\n"
        ".popsection\n");

#define WAITS 4096
#define STARTS 256
#define NESTED 4
#define CROWDED 64

/* A wait until an absolute time, as the program named it and as the kernel is told. The worker reads and writes it. */
struct wait {
    int owner;  /* the thread; 0 if it is free */
    int kind;   /* whose offset; from `is_set` on */
    int is_set; /* what follows counts */
    unsigned order;
    struct timespec named, told;
};

/* At the start of it: whether the worker can rely on this process. */
enum readiness { UNKNOWN, READY, NO_ORIGINALS, CROWDED_OUT };

struct waits {
    int readiness;
    int beyond; /* no wait is at this place or after it */
    struct wait all[WAITS];
};
struct waits reprieve_waits HIDDEN;

static unsigned order;

/* -- the host's clocks -- */

typedef long (*getter)(int, struct timespec *);
static getter vdso;
#define NO_VDSO ((getter)1)

static int is_name(const char *a, const char *b) {
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

/* elf(5), of the image that the kernel maps into every process. */
static getter find_getter(void) {
    unsigned char *image = getauxval ? (unsigned char *)getauxval(33 /* AT_SYSINFO_EHDR */) : 0;
    if (!image)
        return NO_VDSO;
    unsigned char *header = image + *(unsigned long *)(image + 32);
    int headers = *(unsigned short *)(image + 56), size = *(unsigned short *)(image + 54);
    unsigned long bias = 0;
    unsigned long *entry = 0;
    int is_biased = 0;
    for (int at = 0; at < headers; at++, header += size) {
        unsigned kind = *(unsigned *)header;
        unsigned long offset = *(unsigned long *)(header + 8), address = *(unsigned long *)(header + 16);
        if (kind == 1 /* PT_LOAD */ && !is_biased) {
            bias = (unsigned long)image + offset - address;
            is_biased = 1;
        } else if (kind == 2 /* PT_DYNAMIC */) {
            entry = (unsigned long *)(image + offset);
        }
    }
    const char *strings = 0;
    unsigned char *symbols = 0;
    unsigned *table = 0, *gnu = 0;
    for (; entry && entry[0]; entry += 2) {
        void *found = (void *)(bias + entry[1]);
        switch (entry[0]) {
        case 4: table = found; break;           /* DT_HASH */
        case 5: strings = found; break;         /* DT_STRTAB */
        case 6: symbols = found; break;         /* DT_SYMTAB */
        case 0x6ffffef5: gnu = found; break;    /* DT_GNU_HASH */
        }
    }
    if (!strings || !symbols || !(table || gnu))
        return NO_VDSO;
    unsigned count = table ? table[1] : 0;
    if (!table) {
        /* The largest number in a bucket, and on to the end of its chain. */
        unsigned *buckets = gnu + 4 + gnu[2] * 2, *chains = buckets + gnu[0];
        for (unsigned at = 0; at < gnu[0]; at++)
            if (buckets[at] > count)
                count = buckets[at];
        if (count) {
            while (!(chains[count - gnu[1]] & 1))
                count++;
            count++;
        }
    }
    for (unsigned at = 0; at < count; at++) {
        unsigned char *symbol = symbols + 24 * at;
        if (*(unsigned short *)(symbol + 6) && is_name(strings + *(unsigned *)symbol, VDSO_CLOCK_GETTIME))
            return (getter)(bias + *(unsigned long *)(symbol + 8));
    }
    return NO_VDSO;
}

static inline long host_clock(int clock, struct timespec *time) {
    getter get = __atomic_load_n(&vdso, __ATOMIC_RELAXED);
    if (__builtin_expect(!get, 0)) {
        get = find_getter();
        __atomic_store_n(&vdso, get, __ATOMIC_RELAXED);
    }
    return get == NO_VDSO ? call(NR_CLOCK_GETTIME, clock, (long)time, 0, 0, 0, 0) : get(clock, time);
}

/* Nothing that is read or written before this comes after it: the program may have been stored and resumed in between. */
#define HERE_OR_THERE() __asm__ volatile("" ::: "memory")

static inline long read_clock(int clock, struct timespec *time) {
    enum kind kind = kind_of(clock);
    if (kind == NONE)
        return host_clock(clock, time);
    long offset;
    do {
        offset = reprieve_numbers.offsets[kind];
        HERE_OR_THERE();
        long failed = host_clock(clock, time);
        if (failed)
            return failed;
        HERE_OR_THERE();
    } while (__builtin_expect(offset != reprieve_numbers.offsets[kind], 0));
    if (offset) {
        time->seconds += offset / SECOND;
        time->nanoseconds += offset % SECOND;
        if (time->nanoseconds >= SECOND) {
            time->nanoseconds -= SECOND;
            time->seconds++;
        } else if (time->nanoseconds < 0) {
            time->nanoseconds += SECOND;
            time->seconds--;
        }
    }
    return 0;
}

int clock_gettime(int clock, struct timespec *time) { return (int)answer(read_clock(clock, time)); }

/* -- times that are named -- */

/* Whether the kernel would take it for a time. What it would not is left as it is, for the C library or the kernel to refuse. */
static inline int is_time(const struct timespec *time) {
    return time->seconds >= 0 && time->nanoseconds >= 0 && time->nanoseconds < SECOND;
}

/* On the host's clock; the worker does the same. What is before its beginning is long over. */
static struct timespec on_host(struct timespec named, long offset) {
    struct timespec told = {0, named.nanoseconds - offset % SECOND};
    long carried = 0;
    if (told.nanoseconds >= SECOND)
        told.nanoseconds -= SECOND, carried = 1;
    else if (told.nanoseconds < 0)
        told.nanoseconds += SECOND, carried = -1;
    if (__builtin_add_overflow(named.seconds, carried - offset / SECOND, &told.seconds))
        return named;
    if (told.seconds < 0)
        told.seconds = told.nanoseconds = 0;
    return told;
}

static int is_dead(int thread) {
    return call(NR_TGKILL, call(NR_GETPID, 0, 0, 0, 0, 0, 0), thread, 0, 0, 0, 0) == -NO_SUCH_PROCESS;
}

static int take(struct wait *wait, int owner, int thread) {
    return __atomic_compare_exchange_n(&wait->owner, &owner, thread, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

/* A place for a wait. One that was left by a jump or by being cancelled stays taken: it is had again from a thread that is no
 * more, and by a thread that seems to be in more waits than signal handlers can be nested. */
static struct wait *a_place(void) {
    int thread = (int)call(NR_GETTID, 0, 0, 0, 0, 0, 0), own = 0;
    struct wait *oldest = 0;
    for (int at = 0; at < WAITS; at++) {
        int place = at < STARTS ? (at + thread) & (STARTS - 1) : at;
        struct wait *wait = &reprieve_waits.all[place];
        int owner = __atomic_load_n(&wait->owner, __ATOMIC_RELAXED);
        if (owner == thread) {
            if (!oldest || (int)(wait->order - oldest->order) < 0)
                oldest = wait;
            if (++own >= NESTED)
                return oldest;
            continue;
        }
        if (owner && (at < CROWDED || !is_dead(owner)))
            continue;
        int beyond = __atomic_load_n(&reprieve_waits.beyond, __ATOMIC_RELAXED);
        while (beyond <= place && !__atomic_compare_exchange_n(&reprieve_waits.beyond, &beyond, place + 1, 0,
                                                               __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
            ;
        if (take(wait, owner, thread))
            return wait;
    }
    return 0;
}

/* What to tell the kernel. `spare` is for when there is no place, and then the worker knows that it cannot rely on this process. */
static struct timespec *begin(enum kind kind, const struct timespec *named, struct wait **place, struct timespec *spare) {
    struct wait *wait = *place = a_place();
    struct timespec *told = wait ? &wait->told : spare;
    if (wait) {
        wait->is_set = 0;
        HERE_OR_THERE();
        wait->order = __atomic_fetch_add(&order, 1, __ATOMIC_RELAXED);
        wait->kind = kind;
        wait->named = *named;
        HERE_OR_THERE();
        wait->is_set = 1;
    } else {
        reprieve_waits.readiness = CROWDED_OUT;
    }
    long offset;
    do {
        offset = reprieve_numbers.offsets[kind];
        HERE_OR_THERE();
        *told = on_host(*named, offset);
        HERE_OR_THERE();
    } while (offset != reprieve_numbers.offsets[kind]);
    return told;
}

static void end(struct wait *wait) {
    if (!wait)
        return;
    wait->is_set = 0;
    HERE_OR_THERE();
    __atomic_store_n(&wait->owner, 0, __ATOMIC_RELEASE);
}

/* Carries out `does`, an expression with `told`. */
#define WAITING(clock, named, does)                                                                                    \
    ({                                                                                                                 \
        struct wait *place = 0;                                                                                        \
        struct timespec spare;                                                                                         \
        enum kind kind = kind_of(clock);                                                                               \
        int is_ours = kind != NONE && (named) && is_time(named);                                                       \
        const struct timespec *told = is_ours ? begin(kind, named, &place, &spare) : (named);                          \
        __typeof__(does) done = does;                                                                                  \
        end(place);                                                                                                    \
        done;                                                                                                          \
    })

/* -- what the C library has -- */

typedef int (*function)();

static struct original {
    const char *name;
    function is;
} originals[] = {
#define ORIGINAL(number, name)                                                                                         \
    { #name, 0 }
    ORIGINAL(0, clock_nanosleep),
    ORIGINAL(1, pthread_cond_timedwait),
    ORIGINAL(2, pthread_cond_clockwait),
    ORIGINAL(3, sem_clockwait),
    ORIGINAL(4, pthread_mutex_clocklock),
    ORIGINAL(5, pthread_rwlock_clockrdlock),
    ORIGINAL(6, pthread_rwlock_clockwrlock),
    ORIGINAL(7, pthread_clockjoin_np),
    ORIGINAL(8, timer_create),
    ORIGINAL(9, timer_delete),
    ORIGINAL(10, timer_settime),
    ORIGINAL(11, timerfd_settime),
    ORIGINAL(12, pthread_condattr_init),
    ORIGINAL(13, pthread_condattr_setclock),
    ORIGINAL(14, pthread_cond_init),
};
enum {
    CLOCK_NANOSLEEP,
    COND_TIMEDWAIT,
    COND_CLOCKWAIT,
    SEM_CLOCKWAIT,
    MUTEX_CLOCKLOCK,
    RWLOCK_CLOCKRDLOCK,
    RWLOCK_CLOCKWRLOCK,
    CLOCKJOIN,
    TIMER_CREATE,
    TIMER_DELETE,
    TIMER_SETTIME,
    TIMERFD_SETTIME,
    CONDATTR_INIT,
    CONDATTR_SETCLOCK,
    COND_INIT,
    ORIGINALS
};

static function original(int number) {
    struct original *one = &originals[number];
    if (!one->is && dlsym)
        one->is = (function)dlsym(NEXT, one->name);
    return one->is;
}

/* Where a condition variable says that it goes by CLOCK_MONOTONIC: C libraries differ, so one that does is compared with one
 * that does not. */
#define CONDITION 64 /* larger than any */
static int differs_at = -1;
static unsigned char differs_by;

static int look_at_conditions(void) {
    union {
        unsigned char bytes[CONDITION];
        long aligned;
    } usual = {{0}}, monotonic = {{0}}, attribute = {{0}};
    if (!original(COND_INIT) || !original(CONDATTR_INIT) || !original(CONDATTR_SETCLOCK))
        /* No threads here, and so none that wait. */
        return !original(COND_TIMEDWAIT);
    if (original(CONDATTR_INIT)(&attribute) || original(COND_INIT)(&usual, &attribute) ||
        original(CONDATTR_SETCLOCK)(&attribute, CLOCK_MONOTONIC) || original(COND_INIT)(&monotonic, &attribute))
        return 0;
    int found = -1;
    for (int at = 0; at < CONDITION; at++) {
        if (usual.bytes[at] == monotonic.bytes[at])
            continue;
        if (found >= 0 || usual.bytes[at])
            return 0;
        found = at;
    }
    if (found < 0)
        return 0;
    differs_by = monotonic.bytes[found];
    __atomic_store_n(&differs_at, found, __ATOMIC_RELEASE);
    return 1;
}

static int clock_of(const unsigned char *condition) {
    if (__atomic_load_n(&differs_at, __ATOMIC_ACQUIRE) < 0 && !look_at_conditions())
        return CLOCK_REALTIME;
    return condition[differs_at] & differs_by ? CLOCK_MONOTONIC : CLOCK_REALTIME;
}

__attribute__((constructor)) static void get_ready(void) {
    int is_ready = dlsym && original(CLOCK_NANOSLEEP) && look_at_conditions();
    for (int number = 0; number < ORIGINALS; number++)
        original(number);
    /* What is not there is no error of the program's. */
    if (dlerror)
        dlerror();
    if (reprieve_waits.readiness == UNKNOWN)
        reprieve_waits.readiness = is_ready ? READY : NO_ORIGINALS;
}

int clock_nanosleep(int clock, int flags, const struct timespec *time, struct timespec *left) {
#define SLEEP(time)                                                                                                    \
    (original(CLOCK_NANOSLEEP) ? original(CLOCK_NANOSLEEP)(clock, flags, time, left)                                   \
                               : (int)-call(NR_CLOCK_NANOSLEEP, clock, flags, (long)(time), (long)left, 0, 0))
    if (!(flags & ABSTIME))
        return SLEEP(time);
    return WAITING(clock, time, SLEEP(told));
}

int pthread_cond_timedwait(void *condition, void *mutex, const struct timespec *time) {
    if (!original(COND_TIMEDWAIT))
        return NOT_THERE;
    return WAITING(clock_of(condition), time, original(COND_TIMEDWAIT)(condition, mutex, told));
}

int pthread_cond_clockwait(void *condition, void *mutex, int clock, const struct timespec *time) {
    if (!original(COND_CLOCKWAIT))
        return NOT_THERE;
    return WAITING(clock, time, original(COND_CLOCKWAIT)(condition, mutex, clock, told));
}

int sem_clockwait(void *semaphore, int clock, const struct timespec *time) {
    if (!original(SEM_CLOCKWAIT))
        return (int)answer(-NOT_THERE);
    return WAITING(clock, time, original(SEM_CLOCKWAIT)(semaphore, clock, told));
}

int pthread_mutex_clocklock(void *mutex, int clock, const struct timespec *time) {
    if (!original(MUTEX_CLOCKLOCK))
        return NOT_THERE;
    return WAITING(clock, time, original(MUTEX_CLOCKLOCK)(mutex, clock, told));
}

int pthread_rwlock_clockrdlock(void *lock, int clock, const struct timespec *time) {
    if (!original(RWLOCK_CLOCKRDLOCK))
        return NOT_THERE;
    return WAITING(clock, time, original(RWLOCK_CLOCKRDLOCK)(lock, clock, told));
}

int pthread_rwlock_clockwrlock(void *lock, int clock, const struct timespec *time) {
    if (!original(RWLOCK_CLOCKWRLOCK))
        return NOT_THERE;
    return WAITING(clock, time, original(RWLOCK_CLOCKWRLOCK)(lock, clock, told));
}

int pthread_clockjoin_np(unsigned long thread, void **result, int clock, const struct timespec *time) {
    if (!original(CLOCKJOIN))
        return NOT_THERE;
    return WAITING(clock, time, original(CLOCKJOIN)(thread, result, clock, told));
}

/* -- timers -- */

#define TIMERS 4096

/* Those of our clocks, since nobody tells of a timer which clock it has. A key is never 0. */
static struct {
    unsigned long key;
    int kind; /* plus 1; 0 if there is no such timer any more */
} timers[TIMERS];

static unsigned long key_of(unsigned long timer) { return timer + 1 ? timer + 1 : timer; }

static unsigned place_of(unsigned long key) { return (unsigned)((key * 0x9e3779b97f4a7c15UL) >> 52) % TIMERS; }

static int *timer_kind(unsigned long timer) {
    unsigned long key = key_of(timer);
    for (unsigned at = 0, place = place_of(key); at < TIMERS; at++, place = (place + 1) % TIMERS) {
        unsigned long its = __atomic_load_n(&timers[place].key, __ATOMIC_ACQUIRE);
        if (its == key && __atomic_load_n(&timers[place].kind, __ATOMIC_ACQUIRE))
            return &timers[place].kind;
        if (!its)
            break;
    }
    return 0;
}

static void forget_timer(unsigned long timer) {
    int *kind;
    while ((kind = timer_kind(timer)))
        __atomic_store_n(kind, 0, __ATOMIC_RELEASE);
}

static void know_timer(unsigned long timer, int clock) {
    enum kind kind = kind_of(clock);
    /* A program that was forked has none of those that its parent had. */
    forget_timer(timer);
    if (kind == NONE)
        return;
    unsigned long key = key_of(timer);
    for (unsigned at = 0, place = place_of(key); at < TIMERS; at++, place = (place + 1) % TIMERS) {
        unsigned long its = __atomic_load_n(&timers[place].key, __ATOMIC_ACQUIRE);
        int none = 0;
        if (its && __atomic_load_n(&timers[place].kind, __ATOMIC_ACQUIRE))
            continue;
        if (!__atomic_compare_exchange_n(&timers[place].kind, &none, -1, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
            continue;
        __atomic_store_n(&timers[place].key, key, __ATOMIC_RELEASE);
        __atomic_store_n(&timers[place].kind, (int)kind + 1, __ATOMIC_RELEASE);
        return;
    }
    reprieve_waits.readiness = CROWDED_OUT;
}

/* When it is due by the host's clock. The kernel takes 0 for "never", so what is past comes at the first moment there is; what
 * comes again and again keeps its beat. */
static struct itimerspec due_on_host(struct itimerspec named, long offset) {
    struct timespec told = on_host(named.value, offset);
    if (!told.seconds && !told.nanoseconds) {
        told.nanoseconds = 1;
        __int128 interval = (__int128)named.interval.seconds * SECOND + named.interval.nanoseconds;
        __int128 value = (__int128)named.value.seconds * SECOND + named.value.nanoseconds - offset;
        if (interval > 0 && value <= 0) {
            /* Both fit into 64 bits: the value is between 0 and the offset. */
            unsigned long before = (unsigned long)-value, beat = interval > 0x7fffffffffffffffL ? ~0UL >> 1 : (unsigned long)interval;
            unsigned long next = beat - before % beat;
            told.seconds = (long)(next / SECOND);
            told.nanoseconds = (long)(next % SECOND);
        }
    }
    named.value = told;
    return named;
}

static int is_to_be_told(int flags, const struct itimerspec *value) {
    int is_off = value && !value->value.seconds && !value->value.nanoseconds;
    return (flags & ABSTIME) && value && !is_off && is_time(&value->value) && is_time(&value->interval);
}

/* Carries out `does`, an expression with `told`, until it was done with the offset that counts. */
#define SETTING(kind, value, does)                                                                                     \
    ({                                                                                                                 \
        long offset, done;                                                                                             \
        do {                                                                                                           \
            offset = reprieve_numbers.offsets[kind];                                                                   \
            HERE_OR_THERE();                                                                                           \
            struct itimerspec due = due_on_host(*(value), offset);                                                     \
            const struct itimerspec *told = offset ? &due : (value);                                                   \
            done = does;                                                                                               \
            HERE_OR_THERE();                                                                                           \
        } while (offset != reprieve_numbers.offsets[kind]);                                                            \
        done;                                                                                                          \
    })

int timer_create(int clock, void *event, unsigned long *timer) {
    if (!original(TIMER_CREATE))
        return (int)answer(-NOT_THERE);
    int failed = original(TIMER_CREATE)(clock, event, timer);
    if (!failed)
        know_timer(*timer, clock);
    return failed;
}

int timer_delete(unsigned long timer) {
    if (!original(TIMER_DELETE))
        return (int)answer(-NOT_THERE);
    forget_timer(timer);
    return original(TIMER_DELETE)(timer);
}

int timer_settime(unsigned long timer, int flags, const struct itimerspec *value, struct itimerspec *before) {
    if (!original(TIMER_SETTIME))
        return (int)answer(-NOT_THERE);
    int *found = timer_kind(timer), kind = found ? *found - 1 : NONE;
    if (kind < 0 || !is_to_be_told(flags, value))
        return original(TIMER_SETTIME)(timer, flags, value, before);
    return (int)SETTING(kind, value, original(TIMER_SETTIME)(timer, flags, told, before));
}

/* The clock of a timer descriptor, which may be a copy or come from elsewhere: so the kernel is asked. Where it cannot be, by what is
 * named: no host has been up for thirty years, and the wall clock is past that. */
static int clock_of_descriptor(int descriptor, const struct itimerspec *value) {
    char path[48] = "/proc/self/fdinfo/", digits[12], text[512];
    int at = 18, count = 0;
    long length = 0, got;
    for (unsigned left = (unsigned)descriptor; left || !count; left /= 10)
        digits[count++] = (char)('0' + left % 10);
    while (count)
        path[at++] = digits[--count];
    path[at] = 0;
    long file = call(NR_OPENAT, HERE, (long)path, 02000000 /* O_CLOEXEC */, 0, 0, 0);
    if (file >= 0) {
        while (length < (long)sizeof text && (got = call(NR_READ, file, (long)(text + length), (long)sizeof text - length, 0, 0, 0)) > 0)
            length += got;
        call(NR_CLOSE, file, 0, 0, 0, 0, 0);
    }
    const char *wanted = "clockid: ";
    for (long start = 0; start + 10 <= length; start++) {
        int same = 0;
        while (wanted[same] && text[start + same] == wanted[same])
            same++;
        if (!wanted[same])
            return text[start + same] - '0';
    }
    return value->value.seconds < SECOND ? CLOCK_MONOTONIC : CLOCK_REALTIME;
}

#define SET_DESCRIPTOR(value)                                                                                          \
    (original(TIMERFD_SETTIME) ? original(TIMERFD_SETTIME)(descriptor, flags, value, before)                           \
                               : (int)answer(call(NR_TIMERFD_SETTIME, descriptor, flags, (long)(value), (long)before, 0, 0)))

int timerfd_settime(int descriptor, int flags, const struct itimerspec *value, struct itimerspec *before) {
    if (!is_to_be_told(flags, value))
        return SET_DESCRIPTOR(value);
    int kind = NONE, is_known = 0, done;
    long offsets[KINDS], now[KINDS];
    /* Until the first resume there is nothing to ask for. */
    do {
        for (int one = 0; one < KINDS; one++)
            offsets[one] = reprieve_numbers.offsets[one];
        HERE_OR_THERE();
        if (!is_known && (offsets[MONOTONIC] || offsets[BOOTTIME])) {
            kind = kind_of(clock_of_descriptor(descriptor, value));
            is_known = 1;
        }
        struct itimerspec due = kind == NONE ? *value : due_on_host(*value, offsets[kind]);
        done = SET_DESCRIPTOR(&due);
        HERE_OR_THERE();
        for (int one = 0; one < KINDS; one++)
            now[one] = reprieve_numbers.offsets[one];
    } while (offsets[MONOTONIC] != now[MONOTONIC] || offsets[BOOTTIME] != now[BOOTTIME]);
    return done;
}

/* -- who makes the system calls by number -- */

static int waits_until(long command) {
    if (command & FUTEX_WALL_CLOCK)
        return 0;
    command &= FUTEX_COMMAND;
    return command == FUTEX_WAIT_BITSET || command == FUTEX_WAIT_REQUEUE_PI || command == FUTEX_LOCK_PI2;
}

long syscall(long number, long a, long b, long c, long d, long e, long f) {
    const struct timespec *time;
    switch (number) {
    case NR_CLOCK_GETTIME:
        /* What cannot be written to is the kernel's to refuse. */
        if (kind_of((int)a) != NONE && b)
            return answer(read_clock((int)a, (struct timespec *)b));
        break;
    case NR_CLOCK_NANOSLEEP:
        time = (const struct timespec *)c;
        if (b & ABSTIME)
            return answer(WAITING((int)a, time, call(number, a, b, (long)told, d, e, f)));
        break;
    case NR_FUTEX:
        time = (const struct timespec *)d;
        if (waits_until(b))
            return answer(WAITING(CLOCK_MONOTONIC, time, call(number, a, b, c, (long)told, e, f)));
        break;
    case NR_FUTEX_WAITV:
        time = (const struct timespec *)d;
        return answer(WAITING((int)e, time, call(number, a, b, c, (long)told, e, f)));
    case NR_FUTEX_WAIT:
        time = (const struct timespec *)e;
        return answer(WAITING((int)f, time, call(number, a, b, c, d, (long)told, f)));
    case NR_TIMER_CREATE: {
        long failed = call(number, a, b, c, d, e, f);
        if (!failed)
            know_timer((unsigned long)*(int *)c, (int)a);
        return answer(failed);
    }
    case NR_TIMER_DELETE: forget_timer((unsigned long)(int)a); break;
    case NR_TIMER_SETTIME: {
        const struct itimerspec *value = (const struct itimerspec *)c;
        int *found = timer_kind((unsigned long)(int)a), kind = found ? *found - 1 : NONE;
        if (kind >= 0 && is_to_be_told((int)b, value))
            return answer(SETTING(kind, value, call(number, a, b, (long)told, d, e, f)));
        break;
    }
    case NR_TIMERFD_SETTIME: return timerfd_settime((int)a, (int)b, (const struct itimerspec *)c, (struct itimerspec *)d);
#ifdef DENY_IO_URING
    case NR_IO_URING_SETUP: return answer(-NO_SUCH_CALL);
#endif
    }
    return answer(call(number, a, b, c, d, e, f));
}
