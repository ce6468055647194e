/* Loaded before the C library: io_uring_setup does not exist, and programs do without as on an older kernel.
 *
 * libuv (Node.js) and most others ask through syscall(); whoever uses liburing's shared library through its own functions.
 * Programs that make the system call themselves are not reached. Needs no library: musl and glibc both have what is used.
 */
#include "call.h"
#include "io_uring.h"

long syscall(long number, long a, long b, long c, long d, long e, long f) {
    long result = number == NR_IO_URING_SETUP ? -NO_SUCH_CALL : call(number, a, b, c, d, e, f);
    return answer(result);
}
