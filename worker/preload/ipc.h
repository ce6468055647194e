/* System V IPC of other users.
 *
 * What belongs to another user and is not open to all is shown only to CAP_IPC_OWNER, which Docker does not give. What it is
 * like is told to everybody by the kernel's *_STAT_ANY, its owner among it; what is in it is asked for as that owner, for which
 * CAP_SETUID is enough. Only a question that was refused is asked so. CRIU asks through the C library's functions.
 */
#define DENIED 13 /* EACCES */

#define SHM_STAT 13
#define SHM_INFO 14
#define SHM_STAT_ANY 15
#define MSG_STAT 11
#define MSG_INFO 12
#define MSG_STAT_ANY 13
#define SEM_STAT 18
#define SEM_INFO 19
#define SEM_STAT_ANY 20
#define GETALL 13

#if defined(__x86_64__)
#define NR_SHMAT 30
#define NR_SHMCTL 31
#define NR_SEMCTL 66
#define NR_MSGRCV 70
#define NR_MSGCTL 71
#define NR_GETEUID 107
#define NR_SETRESUID 117
#elif defined(__aarch64__)
#define NR_SHMAT 196
#define NR_SHMCTL 195
#define NR_SEMCTL 191
#define NR_MSGRCV 188
#define NR_MSGCTL 187
#define NR_GETEUID 175
#define NR_SETRESUID 147
#endif

struct kind {
    long control, info, stat, any;
};

static const struct kind shared_memory = {NR_SHMCTL, SHM_INFO, SHM_STAT, SHM_STAT_ANY};
static const struct kind semaphores = {NR_SEMCTL, SEM_INFO, SEM_STAT, SEM_STAT_ANY};
static const struct kind messages = {NR_MSGCTL, MSG_INFO, MSG_STAT, MSG_STAT_ANY};

static long control(const struct kind *kind, long id, long member, long command, long argument) {
    if (kind == &semaphores)
        return call(kind->control, id, member, command, argument, 0, 0);
    return call(kind->control, id, command, argument, 0, 0, 0);
}

/* More than any of the kernel's structures for these has. Each begins with the key and the owner. */
union description {
    struct {
        int key;
        unsigned owner;
    } its;
    char room[512];
};

static int owner_of(const struct kind *kind, long id, long *owner) {
    union description found;
    long last = control(kind, 0, 0, kind->info, (long)&found);
    for (long at = 0; at <= last; at++)
        if (control(kind, at, 0, kind->any, (long)&found) == id) {
            *owner = (long)found.its.owner;
            return 1;
        }
    return 0;
}

/* Begins to be somebody else, if that helps; who we are then, or -1. CRIU has one thread while it asks. */
static long become_owner(const struct kind *kind, long id) {
    long owner, own = call(NR_GETEUID, 0, 0, 0, 0, 0, 0);
    if (!owner_of(kind, id, &owner) || call(NR_SETRESUID, -1, owner, -1, 0, 0, 0))
        return -1;
    return own;
}

static long asked(const struct kind *kind, long id, long member, long command, long argument) {
    long result = control(kind, id, member, command, argument), own;
    if (result != -DENIED)
        return answer(result);
    if (command == kind->stat)
        return answer(control(kind, id, member, kind->any, argument));
    if (kind == &semaphores && command == GETALL && (own = become_owner(kind, id)) >= 0) {
        result = control(kind, id, member, command, argument);
        call(NR_SETRESUID, -1, own, -1, 0, 0, 0);
    }
    return answer(result);
}

int shmctl(int id, int command, void *argument) {
    return (int)asked(&shared_memory, id, 0, command, (long)argument);
}

int msgctl(int id, int command, void *argument) {
    return (int)asked(&messages, id, 0, command, (long)argument);
}

/* The last one comes where a variadic function's comes as well. */
int semctl(int id, int member, int command, long argument) {
    return (int)asked(&semaphores, id, member, command, argument);
}

void *shmat(int id, const void *address, int flags) {
    long result = call(NR_SHMAT, id, (long)address, flags, 0, 0, 0), own;
    if (result == -DENIED && (own = become_owner(&shared_memory, id)) >= 0) {
        result = call(NR_SHMAT, id, (long)address, flags, 0, 0, 0);
        call(NR_SETRESUID, -1, own, -1, 0, 0, 0);
    }
    return (void *)answer(result);
}

long msgrcv(int id, void *message, unsigned long size, long type, int flags) {
    long result = call(NR_MSGRCV, id, (long)message, (long)size, type, flags, 0), own;
    if (result == -DENIED && (own = become_owner(&messages, id)) >= 0) {
        result = call(NR_MSGRCV, id, (long)message, (long)size, type, flags, 0);
        call(NR_SETRESUID, -1, own, -1, 0, 0, 0);
    }
    return answer(result);
}
