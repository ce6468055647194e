"""Watches a directory that it makes, and counts what it sees there: a file of its own, each time.

    watching.py DIRECTORY
"""
import ctypes
import itertools
import os
import sys
import time

libc = ctypes.CDLL(None)
directory = sys.argv[1]
os.makedirs(directory, exist_ok=True)
watch = libc.inotify_init()
libc.inotify_add_watch(watch, directory.encode(), 0x100)  # IN_CREATE
for number in itertools.count(1):
    path = f"{directory}/{number}"
    open(path, "w").close()
    os.unlink(path)
    os.read(watch, 4096)
    print("saw", number, flush=True)
    time.sleep(0.05)
