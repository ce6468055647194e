"""Writes a growing stamp into every page of its memory, from the first to the last, over and over; never stops by itself.

At any one moment some first pages hold a stamp and the rest the one before it. On SIGUSR1 it says `whole N` if that is
so, and `TORN` if pages of different moments stand side by side: `stamps.py MIB`.
"""
import mmap
import os
import signal
import struct
import sys

PAGE = 4096
pages = int(sys.argv[1]) * 256
memory = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
stamp = 0


def check(*_):
    stamps = [struct.unpack_from("<Q", memory, page * PAGE)[0] for page in range(pages)]
    ordered = all(a >= b for a, b in zip(stamps, stamps[1:]))
    whole = ordered and stamps[0] - stamps[-1] <= 1
    os.write(1, f"whole {stamps[0]}\n".encode() if whole else b"TORN\n")


signal.signal(signal.SIGUSR1, check)
os.write(1, b"ready\n")
while True:
    stamp += 1
    for page in range(pages):
        struct.pack_into("<Q", memory, page * PAGE, stamp)
