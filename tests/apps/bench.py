"""A job for the benchmarks, made of one of several kinds of memory.

    bench.py half MIB       half of the pages random, half of them text
    bench.py dense MIB      arrays of numbers, a part of which is calculated anew all the time
    bench.py many COUNT     processes with 2 MiB of their own each
    bench.py writes COUNT   none: writes so many keys per second to the Redis at /run/redis.sock, as redis-benchmark names them

SIGUSR1 changes a twentieth of the pages, picked at random; `changed N` is printed when it is done.
"""
import array
import mmap
import os
import random
import signal
import socket
import sys
import time

PAGE, MIB = 4096, 1 << 20
kind, size = sys.argv[1], int(sys.argv[2])
source = random.Random(7)
WORDS = ["checkpoint", "the", "of", "memory", "spot", "machine", "and", "error", "request", "2026-11-21", "id=", "is"]


def text(length):
    words = (source.choice(WORDS) + str(source.randrange(5000)) for _ in range(length // 6))
    return " ".join(words).encode()[:length].ljust(length, b".")


pieces = [text(MIB) for _ in range(8)] if kind == "half" else []


def fill_half(mib):
    memory = mmap.mmap(-1, mib * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for block in range(mib):
        start = block * MIB
        if block % 2:
            memory[start:start + MIB] = os.urandom(MIB)
        else:
            turn, piece = source.randrange(MIB), pieces[block // 2 % 8]
            memory[start:start + MIB] = piece[turn:] + piece[:turn]
    return memory


def change_half(memory):
    pages = len(memory) // PAGE
    for page in source.sample(range(pages), pages // 20):
        start = page * PAGE
        if start // MIB % 2:
            memory[start:start + PAGE] = os.urandom(PAGE)
        else:
            turn = source.randrange(MIB - PAGE)
            memory[start:start + PAGE] = source.choice(pieces)[turn:turn + PAGE]


def dense(mib):
    rows = [array.array("d", (source.gauss(0, 1) for _ in range(MIB // 8 // 16))) * 16 for _ in range(mib)]
    for number, row in enumerate(rows):
        row[0] = number
    say("ready")
    while True:
        # As a training step does: one part of the model at a time, all of its numbers.
        row = source.choice(rows)
        for at in range(0, len(row), 64):
            row[at] *= 1.0001
        time.sleep(0.02)


def many(count):
    for _ in range(count):
        if os.fork() == 0:
            memory = bytearray(os.urandom(MIB)) + bytearray(text(MIB // 8) * 8)
            say("child")
            while memory:
                time.sleep(3600)
    say("ready")
    while True:
        time.sleep(3600)


def writes(count):
    redis = socket.socket(socket.AF_UNIX)
    redis.connect("/run/redis.sock")
    value = b"x" * 300
    while True:
        for _ in range(count // 10):
            key = b"key:%012d" % source.randrange(400000)
            redis.sendall(b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(key), key, len(value), value))
            redis.recv(64)
        time.sleep(0.1)


def say(what):
    os.write(1, f"{what}\n".encode())


if kind == "dense":
    dense(size)
if kind == "many":
    many(size)
if kind == "writes":
    writes(size)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
memory, changes = fill_half(size), 0
say("ready")
while True:
    # Not sigwait(): a freeze may interrupt it.
    time.sleep(0.05)
    if signal.SIGUSR1 in signal.sigpending():
        signal.sigtimedwait([signal.SIGUSR1], 0)
        change_half(memory)
        changes += 1
        say(f"changed {changes}")
