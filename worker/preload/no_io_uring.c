/* Loaded before the C library: io_uring_setup does not exist, and programs do without as on an older kernel.
 *
 * libuv (Node.js) and most others ask through syscall(); whoever uses liburing's shared library through its own functions.
 * Programs that make the system call themselves are not reached. Needs no library: musl and glibc both have what is used.
 */
#define NR_IO_URING_SETUP 425 /* on every architecture */
#define NO_SUCH_CALL 38       /* ENOSYS */

extern int *__errno_location(void);

static long call(long number, long a, long b, long c, long d, long e, long f) {
#if defined(__x86_64__)
    register long fourth __asm__("r10") = d;
    register long fifth __asm__("r8") = e;
    register long sixth __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth), "r"(sixth)
                     : "rcx", "r11", "memory");
    return result;
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory");
    return x0;
#else
#error "how are system calls made here?"
#endif
}

long syscall(long number, long a, long b, long c, long d, long e, long f) {
    long result = number == NR_IO_URING_SETUP ? -NO_SUCH_CALL : call(number, a, b, c, d, e, f);
    if ((unsigned long)result > -4096UL) {
        *__errno_location() = (int)-result;
        return -1;
    }
    return result;
}

/* liburing's own: they return the error. */
int io_uring_setup(unsigned entries, void *params) { return -NO_SUCH_CALL; }
int io_uring_queue_init(unsigned entries, void *ring, unsigned flags) { return -NO_SUCH_CALL; }
int io_uring_queue_init_params(unsigned entries, void *ring, void *params) { return -NO_SUCH_CALL; }
int io_uring_queue_init_mem(unsigned entries, void *ring, void *params, void *memory, unsigned long size) {
    return -NO_SUCH_CALL;
}
