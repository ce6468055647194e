"""Fills memory with bytes that follow from a seed and proves on request that they are still there."""
import argparse
import ctypes
import hashlib
import os
import random
import signal
import time

MIB = 1 << 20
PAGE = 4096
parser = argparse.ArgumentParser()
parser.add_argument("mib", type=int)
parser.add_argument("seed", type=int, nargs="?", default=1)
parser.add_argument("--fresh", action="store_true", help="change every page a little, over and over")
parser.add_argument("--rewrite", type=int, default=0, help="pages to rewrite each second")
parser.add_argument("--churn", type=int, default=0, help="pages to rewrite on each SIGUSR2, which is answered like SIGUSR1")
options = parser.parse_args()
source = random.Random(options.seed)
blocks = [bytearray(source.randbytes(MIB)) for _ in range(options.mib)]
# Where the first page begins that lies in the block alone.
leads = [-ctypes.addressof(ctypes.c_char.from_buffer(block)) % PAGE for block in blocks]


def say_digest():
    digest = hashlib.sha256()
    for block in blocks:
        if options.fresh:
            for start in range(0, MIB, PAGE):
                digest.update(block[start + 8:start + PAGE])
        else:
            digest.update(block)
    os.write(1, f"digest {digest.hexdigest()}\n".encode())


def ask(*_):
    global asked
    asked = True


def change(*_):
    global changing
    changing = True


asked = changing = False
signal.signal(signal.SIGUSR1, ask)
signal.signal(signal.SIGUSR2, change)
say_digest()
os.write(1, b"ready\n")
tick = 0
while True:
    time.sleep(0.1)
    if changing:
        changing = False
        for _ in range(options.churn):
            block = source.choice(blocks)
            start = source.randrange(MIB // PAGE) * PAGE
            block[start:start + PAGE] = source.randbytes(PAGE)
        say_digest()
    # The digest is only taken between two rounds of rewriting, never in the middle of a page.
    if asked:
        asked = False
        say_digest()
    for _ in range(options.rewrite // 10):
        number = source.randrange(options.mib)
        start = leads[number] + source.randrange(MIB // PAGE - 1) * PAGE
        blocks[number][start:start + PAGE] = source.randbytes(PAGE)
    if options.fresh:
        # The first bytes of each page count; the digest is of the rest.
        for block in blocks:
            for start in range(0, MIB, PAGE):
                block[start:start + 8] = tick.to_bytes(8, "little")
    tick += 1
    os.write(1, f"tick {tick}\n".encode())
