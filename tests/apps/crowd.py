"""Has very much of one thing, knows what it should be, and proves on SIGUSR1 that it still is.

    crowd.py descriptors|processes|mappings|buffers COUNT
    crowd.py full       as many processes as it gets; those are ended on SIGHUP
    crowd.py storm      forks, executes and maps as fast as it can
"""
import ctypes
import mmap
import os
import signal
import socket
import sys
import time

# The kernel gives all pipes of a user 16384 pages, those of other programs of root included (pipe(7)).
PIPES = 200
kind, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
SIGNALS = {signal.SIGUSR1, signal.SIGHUP}
signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def say(text):
    os.write(1, f"{text}\n".encode())


def descriptors():
    """Files, pipes and pairs of sockets, a third of each, as long as there may be more pipes."""
    held = []

    def kind_at(at):
        kind = at // 2 % 3
        return 2 if kind == 1 and at >= PIPES * 6 else kind

    while len(held) < count:
        kind = kind_at(len(held))
        if kind == 0:
            held += [os.open(__file__, os.O_RDONLY) for _ in range(2)]
            os.lseek(held[-1], len(held), os.SEEK_SET)
        elif kind == 1:
            held += os.pipe()
        else:
            held += [end.detach() for end in socket.socketpair()]

    def sound():
        for at in range(0, len(held), 2):
            kind = kind_at(at)
            if kind == 0 and os.lseek(held[at + 1], 0, os.SEEK_CUR) != at + 2:
                return False
            if kind != 0:
                here, there = (held[at], held[at + 1]) if kind == 1 else (held[at + 1], held[at])
                os.write(there, b"%d" % at)
                if os.read(here, 20) != b"%d" % at:
                    return False
        return True

    return sound


def processes():
    """Children that answer through a pipe."""
    asked, ask = os.pipe()
    answer, answered = os.pipe()
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            os.close(ask)
            while os.read(asked, 1):
                os.write(answered, b"%8d" % number)
                # Others are to be asked as well.
                time.sleep(0.5)
            os._exit(0)
        children.append(child)

    def sound():
        for child in children:
            if os.waitpid(child, os.WNOHANG) != (0, 0):
                return False
        os.write(ask, b"?")
        return len(os.read(answer, 8)) == 8

    return sound


def mappings():
    """Pages of which every other one may only be read, in children that have as many as the kernel lets them."""
    libc = ctypes.CDLL(None, use_errno=True)
    share = 50000

    def take(number):
        area = mmap.mmap(-1, number * 4096)
        start = ctypes.addressof(ctypes.c_char.from_buffer(area))
        for page in range(0, number, 2):
            area[page * 4096:page * 4096 + 8] = page.to_bytes(8, "little")
            if libc.mprotect(ctypes.c_void_p(start + page * 4096), 4096, mmap.PROT_READ):
                raise OSError(ctypes.get_errno(), f"mprotect of page {page}")
        return area, all

    def is_sound(area, number):
        return all(area[page * 4096:page * 4096 + 8] == page.to_bytes(8, "little") for page in range(0, number, 2))

    pairs = []
    for first in range(share, count, share):
        asked, ask = os.pipe()
        answer, answered = os.pipe()
        if os.fork() == 0:
            number = min(share, count - first)
            area, _ = take(number)
            os.write(answered, b"r")
            while os.read(asked, 1):
                os.write(answered, b"y" if is_sound(area, number) else b"n")
            os._exit(0)
        pairs.append((ask, answer))
        os.read(answer, 1)
    own = min(count, share)
    area, _ = take(own)

    def sound():
        good = is_sound(area, own)
        for ask, answer in pairs:
            os.write(ask, b"?")
            good = os.read(answer, 1) == b"y" and good
        return good

    return sound


def buffers():
    """MiB that nobody has read, in pipes and sockets."""
    held, filled = [], 0
    while filled < count << 20:
        pair = socket.socketpair()
        here, there = (end.detach() for end in pair) if len(held) % 2 or len(held) > 2 * PIPES else os.pipe()
        os.set_blocking(there, False)
        length = 0
        piece = bytes([len(held) % 251]) * 4096
        try:
            while True:
                length += os.write(there, piece)
        except BlockingIOError:
            pass
        held.append((here, there, length, piece[0]))
        filled += length

    def sound():
        for here, there, length, byte in held:
            seen = 0
            while seen < length:
                got = os.read(here, length - seen)
                if got.count(byte) != len(got) or not got:
                    return False
                seen += len(got)
            os.set_blocking(there, True)
            while seen:
                seen -= os.write(there, bytes([byte]) * min(seen, 4096))
        return True

    return sound


def full():
    """Does not mind that there are no more."""
    children = []
    while True:
        try:
            child = os.fork()
        except BlockingIOError:
            break
        if child == 0:
            # The group is told, and only the first is meant.
            while True:
                signal.pause()
        children.append(child)

    def sound():
        return all(os.waitpid(child, os.WNOHANG) == (0, 0) for child in children)

    def end():
        while children:
            child = children.pop()
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    sound.end = end
    return sound


def storm():
    """Several at once; whatever is made ends soon."""
    for _ in range(3):
        if os.fork() == 0:
            while True:
                area = mmap.mmap(-1, 1 << 20)
                area[::4096] = b"x" * 256
                child = os.fork()
                if child == 0:
                    os.execv("/bin/true", ["true"])
                area.close()
                os.waitpid(child, 0)
    return lambda: True


sound = {"descriptors": descriptors, "processes": processes, "mappings": mappings, "buffers": buffers, "full": full, "storm": storm}[kind]()
say("ready")
tick = 0
while True:
    asked = signal.sigtimedwait(SIGNALS, 0.05)
    if asked and asked.si_signo == signal.SIGUSR1:
        say("sound" if sound() else "spoilt")
    # One that was interrupted for too long may return anything.
    elif asked and asked.si_signo == signal.SIGHUP:
        sound.end()
        say("ended")
    tick += 1
    say(f"tick {tick}")
