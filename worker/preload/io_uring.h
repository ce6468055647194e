/* io_uring_setup does not exist: for whoever asks through syscall(), and for whoever has liburing's shared library. */
#define NR_IO_URING_SETUP 425 /* on every architecture */
#define NO_SUCH_CALL 38       /* ENOSYS */

/* liburing's own: they return the error. */
int io_uring_setup(unsigned entries, void *params) { return -NO_SUCH_CALL; }
int io_uring_queue_init(unsigned entries, void *ring, unsigned flags) { return -NO_SUCH_CALL; }
int io_uring_queue_init_params(unsigned entries, void *ring, void *params) { return -NO_SUCH_CALL; }
int io_uring_queue_init_mem(unsigned entries, void *ring, void *params, void *memory, unsigned long size) {
    return -NO_SUCH_CALL;
}
