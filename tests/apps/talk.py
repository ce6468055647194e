"""Two ends of a connection.

talk.py peer             counts to whoever connects and prints what comes back
talk.py job ADDRESS      connects to the peer, prints each line and sends it back
talk.py watching ADDRESS does so, and watches a directory, which is in the way of a checkpoint

Both print `gone` when the connection ends.
"""
import ctypes
import socket
import sys
import threading
import time


def answered(connection):
    """Prints what comes, as long as something does."""
    try:
        for line in connection.makefile("rb"):
            print(line.decode().strip(), flush=True)
            if kind != "peer":
                connection.sendall(line)
    except OSError:
        pass
    print("gone", flush=True)


def count(connection):
    number = 0
    try:
        while True:
            number += 1
            connection.sendall(f"line {number}\n".encode())
            time.sleep(0.01)
    except OSError:
        print("gone", flush=True)


def connected(address):
    while True:
        try:
            connection = socket.create_connection((address, 7000), timeout=1)
        except OSError:
            time.sleep(0.02)
            continue
        connection.settimeout(None)
        return connection


kind = sys.argv[1]
if kind == "peer":
    server = socket.create_server(("", 7000), family=socket.AF_INET6, dualstack_ipv6=True)
    caller, _ = server.accept()
    threading.Thread(target=count, args=(caller,), daemon=True).start()
    answered(caller)
else:
    peer = connected(sys.argv[2])
    if kind == "watching":
        libc = ctypes.CDLL(None)
        libc.inotify_add_watch(libc.inotify_init(), b"/tmp", 2)
    answered(peer)
# What was said is to be read until the host goes.
threading.Event().wait()
