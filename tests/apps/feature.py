"""A job with one thing that a checkpoint may stumble over: made, told of (`ready`), and kept.

    feature.py NAME [SIZE]

Everything is made with system calls, so that CRIU meets the thing itself and no library's notion of it.
"""
import ctypes
import os
import resource
import socket
import struct
import subprocess
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.mmap.restype = ctypes.c_void_p
libc.shmat.restype = ctypes.c_void_p
kept = []


def check(result):
    if result is None or result < 0 or result == 2**64 - 1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def syscall(number, *arguments):
    return check(libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]))


def io_uring():
    params = ctypes.create_string_buffer(120)
    return syscall(425, 4, params)


def io_uring_mapping():
    fd = io_uring()
    kept.append(check(libc.mmap(None, ctypes.c_size_t(4096), 3, 1, fd, ctypes.c_long(0x10000000))))
    os.close(fd)


def inotify(path):
    fd = check(libc.inotify_init1(0))
    if path:
        check(libc.inotify_add_watch(fd, path.encode(), 0x100))


def fanotify(path):
    # FAN_REPORT_FID, which needs no privilege; FAN_CREATE | FAN_ONDIR
    fd = syscall(300, 0x200, 0)
    if path:
        syscall(301, fd, 1, 0x40000100, -100, ctypes.c_char_p(path.encode()))


def shared_memory():
    number = check(libc.shmget(0, ctypes.c_size_t(1 << 20), 0o1600))
    kept.append(check(libc.shmat(number, None, 0)))


def seccomp_filter():
    # A filter that allows everything.
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 1, ctypes.addressof(program)))
    check(libc.prctl(38, 1, 0, 0, 0))
    check(libc.prctl(22, 2, header, 0, 0))


def in_child(action):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        action()
        os.write(writer, b"x")
        os.close(writer)
        while True:
            time.sleep(1000)
    os.close(writer)
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    return pid


def traced():
    pid = in_child(lambda: None)
    # PTRACE_SEIZE
    check(libc.ptrace(0x4206, pid, None, None))


def namespace(flag):
    in_child(lambda: check(libc.unshare(flag)))


def other_user(user):
    def change():
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    in_child(change)


def only_effective():
    in_child(lambda: os.setresuid(0, 1000, 0))


def only_group():
    in_child(lambda: os.setresgid(1000, 1000, 1000))


def thread_of_another_user():
    import threading
    ready = threading.Event()
    def run():
        syscall(117, 1000, 1000, 1000)  # setresuid of this thread only
        ready.set()
        time.sleep(100000)
    threading.Thread(target=run, daemon=True).start()
    ready.wait()


def filtered_thread():
    import threading
    ready = threading.Event()
    def run():
        seccomp_filter()
        ready.set()
        time.sleep(100000)
    threading.Thread(target=run, daemon=True).start()
    ready.wait()


def deleted(directory, size, sparse=False):
    path = f"{directory}/gone"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    if sparse:
        os.ftruncate(fd, size)
    else:
        while size > 0:
            size -= os.write(fd, b"x" * min(size, 1 << 20))
    os.unlink(path)
    return fd


def deleted_mapping(directory, size, flags):
    fd = deleted(directory, size)
    kept.append(check(libc.mmap(None, ctypes.c_size_t(size), 3, flags, fd, ctypes.c_long(0))))
    os.close(fd)


def deleted_with_another_name(directory):
    path = f"{directory}/gone"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x")
    os.link(path, f"{directory}/stays")
    os.unlink(path)


def socket_of(family, kind, protocol=0, bind=None):
    one = socket.socket(family, kind, protocol)
    if bind is not None:
        one.bind(bind)
    kept.append(one)
    return one


def listening(family, kind, protocol, address):
    socket_of(family, kind, protocol, address).listen()


def netlink(protocol, groups=0):
    socket_of(socket.AF_NETLINK, socket.SOCK_RAW, protocol, (0, groups))




def queue():
    libc.mq_open.restype = ctypes.c_int
    check(libc.mq_open(b"/feature", os.O_RDWR | os.O_CREAT, 0o600, None))


def userfaultfd():
    return syscall(323, 1)  # UFFD_USER_MODE_ONLY


def landlock():
    rule = ctypes.create_string_buffer(struct.pack("Q", 1))
    return syscall(444, rule, 8, 0)


def secret():
    fd = syscall(447, 0)
    os.ftruncate(fd, 4096)
    kept.append(check(libc.mmap(None, ctypes.c_size_t(4096), 3, 1, fd, ctypes.c_long(0))))
    return fd


def memfd(flags=0):
    fd = os.memfd_create("feature", flags)
    os.ftruncate(fd, 1 << 21)
    kept.append(check(libc.mmap(None, ctypes.c_size_t(1 << 21), 3, 1, fd, ctypes.c_long(0))))



def aio():
    context = ctypes.c_ulong(0)
    syscall(206, 64, ctypes.byref(context))


def perf():
    attributes = ctypes.create_string_buffer(struct.pack("IIQQ", 1, 128, 9, 0) + b"\0" * 104)
    # exclude_kernel
    struct.pack_into("Q", attributes, 40, 1 << 5)
    return syscall(298, attributes, 0, -1, -1, 0)



def device(path, access=os.O_RDWR):
    kept.append(os.open(path, access | os.O_NONBLOCK))


def made_device(major, minor, access=os.O_RDWR, path="/dev/feature"):
    # A tmpfs without nodev, unlike /tmp.
    os.mknod(path, 0o20600, os.makedev(major, minor))
    device(path, access)


def terminal():
    import pty
    kept.append(pty.openpty())


def terminal_of_a_child():
    import pty
    pid, master = pty.fork()
    if pid == 0:
        time.sleep(100000)
    kept.append(master)





def open_file(path, flags=os.O_RDONLY):
    kept.append(os.open(path, flags))


def pidfd():
    kept.append(os.pidfd_open(in_child(lambda: None)))



def stopped():
    os.kill(in_child(lambda: None), 19)


def zombie():
    if os.fork() == 0:
        os._exit(0)
    time.sleep(0.1)


def pipes():
    """More of them than the kernel has buffers for, of one user; none if it gives out as many as anybody likes."""
    with open("/proc/sys/fs/pipe-user-pages-soft") as file:
        pages = int(file.read())
    if pages == 0:
        raise OSError("there is no limit")
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    for _ in range(pages // 16 + 64):
        kept.append(os.pipe())


def orphan():
    subprocess.run(["bash", "-c", "sleep 100000 & exit 0"])


def pair_of_tcp(closed=False):
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    kept.extend([server, client, server.accept()])


def udp():
    socket_of(socket.AF_INET, socket.SOCK_DGRAM, 0, ("127.0.0.1", 0)).connect(("127.0.0.1", 9))


def unread_unix():
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.send(b"x")
    kept.extend([one, other])



def with_descriptor_in_flight():
    one, other = socket.socketpair()
    socket.send_fds(one, [b"x"], [0])
    kept.extend([one, other])


SIZE = int(sys.argv[2]) if len(sys.argv) > 2 else 1 << 20
FEATURES = {
    "nothing": lambda: None,
    "io_uring": io_uring,
    "io_uring-mapping": io_uring_mapping,
    "inotify": lambda: inotify(None),
    "inotify-etc": lambda: inotify("/etc"),
    "inotify-etc-file": lambda: inotify("/etc/debian_version"),
    "inotify-overlay": lambda: inotify("/var/tmp"),
    "inotify-tmpfs": lambda: inotify("/tmp"),
    "inotify-proc": lambda: inotify("/proc"),
    "inotify-bind": lambda: inotify("/snapshots"),
    "fanotify": lambda: fanotify(None),
    "fanotify-tmpfs": lambda: fanotify("/tmp"),
    "fanotify-overlay": lambda: fanotify("/var/tmp"),
    "shm": shared_memory,
    "seccomp": seccomp_filter,
    "seccomp-child": lambda: in_child(seccomp_filter),
    "seccomp-thread": filtered_thread,
    "traced": traced,
    "user-namespace": lambda: namespace(0x10000000),
    "mount-namespace": lambda: namespace(0x10020000),
    "pid-namespace": lambda: namespace(0x30000000),
    "ipc-namespace": lambda: namespace(0x18000000),
    "uts-namespace": lambda: namespace(0x14000000),
    "net-namespace": lambda: namespace(0x50000000),
    "cgroup-namespace": lambda: namespace(0x12000000),
    "time-namespace": lambda: namespace(0x10000080),
    "own-user-namespace": lambda: check(libc.unshare(0x10000000)),
    "own-net-namespace": lambda: check(libc.unshare(0x50000000)),
    "user": lambda: other_user(1000),
    "effective-user": only_effective,
    "group": only_group,
    "thread-user": thread_of_another_user,
    "ghost": lambda: deleted("/var/tmp", SIZE),
    "ghost-tmpfs": lambda: deleted("/tmp", SIZE),
    "ghost-sparse": lambda: deleted("/var/tmp", SIZE, True),
    "ghost-mapping": lambda: deleted_mapping("/var/tmp", SIZE, 1),
    "ghost-private": lambda: deleted_mapping("/var/tmp", SIZE, 2),
    "ghost-linked": lambda: deleted_with_another_name("/var/tmp"),
    "ghost-linked-tmpfs": lambda: deleted_with_another_name("/tmp"),
    "tmpfile": lambda: os.write(os.open("/tmp", os.O_TMPFILE | os.O_RDWR), b"x"),
    "packet": lambda: socket_of(socket.AF_PACKET, socket.SOCK_RAW, 0x300),
    "raw": lambda: socket_of(socket.AF_INET, socket.SOCK_RAW, 1),
    "udp": udp,
    "udplite": lambda: socket_of(socket.AF_INET, socket.SOCK_DGRAM, 136),
    "tcp-unbound": lambda: socket_of(socket.AF_INET, socket.SOCK_STREAM, 0),
    "tcp-bound": lambda: socket_of(socket.AF_INET, socket.SOCK_STREAM, 0, ("127.0.0.1", 0)),
    "tcp-pair": pair_of_tcp,
    "tcp6-listen": lambda: listening(socket.AF_INET6, socket.SOCK_STREAM, 0, ("::1", 0)),
    "mptcp-listen": lambda: listening(socket.AF_INET, socket.SOCK_STREAM, 262, ("127.0.0.1", 0)),
    "netlink-route": lambda: netlink(0),
    "netlink-uevent": lambda: netlink(15, 1),
    "netlink-generic": lambda: netlink(16),
    "netlink-diag": lambda: netlink(4),
    "vsock": lambda: socket_of(socket.AF_VSOCK, socket.SOCK_STREAM),
    "xdp": lambda: socket_of(44, socket.SOCK_RAW, 0),
    "unix-unread": unread_unix,
    "in-flight": with_descriptor_in_flight,
    "queue": queue,
    "userfaultfd": userfaultfd,
    "landlock": landlock,
    "secret": secret,
    "memfd": memfd,
    "aio": aio,
    "perf": perf,
    "device-null": lambda: device("/dev/null"),
    "device-urandom": lambda: device("/dev/urandom"),
    "device-fuse": lambda: made_device(10, 229),
    "device-cpuid": lambda: made_device(203, 0, os.O_RDONLY),
    "gpu": lambda: made_device(10, 229, path="/dev/nvidia0"),
    "device-tun": lambda: made_device(10, 200),
    "pty": terminal,
    "pty-child": terminal_of_a_child,
    "proc-file": lambda: open_file("/proc/self/status"),
    "sys-file": lambda: open_file("/sys/kernel/mm/transparent_hugepage/enabled"),
    "cgroup-file": lambda: open_file("/sys/fs/cgroup"),
    "path-only": lambda: open_file("/etc/hosts", os.O_PATH),
    "namespace-file": lambda: open_file("/proc/self/ns/net"),
    "pidfd": pidfd,
    "stopped": stopped,
    "zombie": zombie,
    "pipes": pipes,
    "orphan": orphan,
}
try:
    FEATURES[sys.argv[1]]()
except OSError as error:
    print(f"absent: {error}", flush=True)
    sys.exit(3)
print("ready", flush=True)
while True:
    time.sleep(0.05)
    print("on", flush=True)
