"""Memory of every kind that is mapped: each is filled, changed in part on request, and proven on request.

Private, private over FILE, which it makes, shared with a child, an anonymous memory file mapped by both, and System V
shared memory where `--sysv` says so. What is shared is written by the parent and read by the child as well, so that a
restore that gave each a copy of its own would show.

    kinds.py FILE [--sysv]    SIGUSR1: `digests` of all kinds; SIGUSR2: changes a part of each first
"""
import ctypes
import hashlib
import mmap
import os
import random
import signal
import sys

MIB = 1 << 20
PAGE = mmap.PAGESIZE
SIZE = 16 * MIB
source = random.Random(11)
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p


def sysv():
    number = libc.shmget(0, ctypes.c_size_t(SIZE), 0o1600)
    address = libc.shmat(number, None, 0)
    if number < 0 or address in (None, 2**64 - 1):
        raise OSError(ctypes.get_errno(), "no System V shared memory")
    return memoryview((ctypes.c_char * SIZE).from_address(address)).cast("B")


def over_a_file():
    with open(sys.argv[1], "w+b") as file:
        file.write(random.Random(12).randbytes(SIZE))
        file.flush()
        return mmap.mmap(file.fileno(), SIZE, flags=mmap.MAP_PRIVATE)


def memory_file():
    number = os.memfd_create("kinds")
    os.ftruncate(number, SIZE)
    return mmap.mmap(number, SIZE)


kinds = {
    "private": mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS),
    "file": over_a_file(),
    "shared": mmap.mmap(-1, SIZE),
    "memfd": memory_file(),
}
if "--sysv" in sys.argv:
    kinds["sysv"] = sysv()


def write(block, page):
    block[page * PAGE:(page + 1) * PAGE] = source.randbytes(PAGE)


# A part is never touched, and of a file it stays what the file has.
for block in kinds.values():
    for page in range(SIZE // PAGE * 3 // 4):
        write(block, page)


def digests(names):
    return " ".join(f"{name} {hashlib.sha256(kinds[name]).hexdigest()[:16]}" for name in names)


shared = [name for name in kinds if name not in ("private", "file")]
here, there = os.pipe(), os.pipe()
if os.fork() == 0:
    # Else it would answer for its parent, or wait for itself.
    os.close(here[1])
    while os.read(here[0], 1):
        os.write(there[1], (digests(shared) + "\n").encode())
    os._exit(0)


def ask(*_):
    os.write(here[1], b".")
    seen = b""
    while not seen.endswith(b"\n"):
        seen += os.read(there[0], 4096)
    ours = digests(shared)
    same = "same" if seen.decode().strip() == ours else f"child has {seen.decode().strip()}"
    os.write(1, f"digests {digests(kinds)} {same}\n".encode())


def change(*_):
    for block in kinds.values():
        for page in source.sample(range(SIZE // PAGE), SIZE // PAGE // 20):
            write(block, page)
    ask()


signal.signal(signal.SIGUSR1, ask)
signal.signal(signal.SIGUSR2, change)
ask()
while True:
    signal.pause()
