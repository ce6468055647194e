/* Waits until absolute times of the monotonic clocks in every way there is, again and again, each in a thread of its own, and says
 * how often each way came back: none may come early, late by much, or not at all. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum way { TIMEDWAIT, CLOCKWAIT, SEMAPHORE, MUTEX, RWLOCK, SLEEP, RAW_SLEEP, FUTEX, DESCRIPTOR, TIMER, JOIN, WAYS };

static const struct timespec patience = {2, 0};
static const long BEAT = 20000000, MUCH = 60;
static long turns[WAYS];
static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;
static pthread_rwlock_t written = PTHREAD_RWLOCK_INITIALIZER;
static pthread_t main_thread;

static struct timespec now(int clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return time;
}

static struct timespec later(struct timespec time, long nanoseconds) {
    time.tv_nsec += nanoseconds;
    time.tv_sec += time.tv_nsec / 1000000000;
    time.tv_nsec %= 1000000000;
    return time;
}

static int is_before(struct timespec a, struct timespec b) {
    return a.tv_sec < b.tv_sec || (a.tv_sec == b.tv_sec && a.tv_nsec < b.tv_nsec);
}

static void *wait_in(void *argument) {
    enum way way = (enum way)(intptr_t)argument;
    int clock = way == SLEEP || way == RAW_SLEEP || way == DESCRIPTOR ? CLOCK_BOOTTIME : CLOCK_MONOTONIC;
    pthread_condattr_t attribute;
    pthread_cond_t monotonic, usual = PTHREAD_COND_INITIALIZER;
    pthread_mutex_t own = PTHREAD_MUTEX_INITIALIZER;
    sem_t never;
    int word = 0, descriptor = timerfd_create(clock, 0);
    timer_t timer;
    sigset_t alarm;
    pthread_condattr_init(&attribute);
    pthread_condattr_setclock(&attribute, CLOCK_MONOTONIC);
    pthread_cond_init(&monotonic, &attribute);
    pthread_mutex_lock(&own);
    sem_init(&never, 0, 0);
    sigemptyset(&alarm);
    sigaddset(&alarm, SIGALRM);
    if (way == TIMER) {
        struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGALRM};
        event._sigev_un._tid = gettid();
        timer_create(clock, &event, &timer);
    }
    for (struct timespec last = now(clock);;) {
        struct timespec due = later(now(clock), BEAT);
        struct itimerspec value = {{0, 0}, due};
        uint64_t times;
        int is_due = 1;
        switch (way) {
        case TIMEDWAIT: is_due = pthread_cond_timedwait(&monotonic, &own, &due) == ETIMEDOUT; break;
        case CLOCKWAIT: is_due = pthread_cond_clockwait(&usual, &own, clock, &due) == ETIMEDOUT; break;
        case SEMAPHORE: is_due = sem_clockwait(&never, clock, &due) && errno == ETIMEDOUT; break;
        case MUTEX: is_due = pthread_mutex_clocklock(&held, clock, &due) == ETIMEDOUT; break;
        case RWLOCK: is_due = pthread_rwlock_clockrdlock(&written, clock, &due) == ETIMEDOUT; break;
        case SLEEP: is_due = !clock_nanosleep(clock, TIMER_ABSTIME, &due, 0); break;
        case RAW_SLEEP: is_due = !syscall(SYS_clock_nanosleep, clock, TIMER_ABSTIME, &due, 0); break;
        case FUTEX: is_due = syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 0, &due, 0, -1) && errno == ETIMEDOUT; break;
        case DESCRIPTOR:
            timerfd_settime(descriptor, TFD_TIMER_ABSTIME, &value, 0);
            is_due = read(descriptor, &times, sizeof times) == sizeof times;
            break;
        case TIMER:
            timer_settime(timer, TIMER_ABSTIME, &value, 0);
            /* CRIU 4.2 loses the signal of a timer that has just expired, whatever the clocks (docs/limits.md). */
            if (sigtimedwait(&alarm, 0, &patience) != SIGALRM)
                continue;
            break;
        case JOIN: is_due = pthread_clockjoin_np(main_thread, 0, clock, &due) == ETIMEDOUT; break;
        default: abort();
        }
        struct timespec after = now(clock);
        if (is_before(after, last))
            printf("%d: the clock went back\n", way);
        /* CRIU sets a timer descriptor again to a whole second. */
        if (is_due && way != DESCRIPTOR && is_before(after, due))
            printf("%d: early\n", way);
        if (after.tv_sec - due.tv_sec > MUCH)
            printf("%d: late by %ld s\n", way, (long)(after.tv_sec - due.tv_sec));
        last = after;
        turns[way]++;
    }
}

int main(void) {
    sigset_t alarm;
    sigemptyset(&alarm);
    sigaddset(&alarm, SIGALRM);
    sigprocmask(SIG_BLOCK, &alarm, 0);
    setvbuf(stdout, 0, _IOLBF, 0);
    main_thread = pthread_self();
    pthread_mutex_lock(&held);
    pthread_rwlock_wrlock(&written);
    for (intptr_t way = 0; way < WAYS; way++) {
        pthread_t thread;
        pthread_create(&thread, 0, wait_in, (void *)way);
    }
    for (;;) {
        usleep(20000);
        printf("turns");
        for (int way = 0; way < WAYS; way++)
            printf(" %ld", turns[way]);
        printf("\n");
    }
}
