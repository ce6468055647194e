"""Keeps one number in System V shared memory, in a semaphore and in a message queue, and counts it up in all three.

    sysv.py [FILE]      make them at once, or when FILE is there
"""
import ctypes
import os
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
CREATE, WAIT_NOT = 0o1000, 0o4000
SETVAL, GETVAL = 16, 12


class Message(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_long), ("number", ctypes.c_long)]


def check(result):
    if result is None or result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


print("ready", flush=True)
while len(sys.argv) > 1 and not os.path.exists(sys.argv[1]):
    print("waiting", flush=True)
    time.sleep(0.02)
memory = check(libc.shmget(7, 8192, CREATE | 0o600))
address = libc.shmat(memory, None, 0)
semaphore = check(libc.semget(8, 1, CREATE | 0o600))
queue = check(libc.msgget(9, CREATE | 0o600))
number = ctypes.c_long.from_address(address)
libc.msgsnd(queue, ctypes.byref(Message(1, 0)), 8, 0)
while True:
    message = Message()
    check(libc.msgrcv(queue, ctypes.byref(message), 8, 0, WAIT_NOT))
    assert number.value == message.number == check(libc.semctl(semaphore, 0, GETVAL))
    number.value += 1
    check(libc.semctl(semaphore, 0, SETVAL, number.value))
    check(libc.msgsnd(queue, ctypes.byref(Message(1, number.value)), 8, 0))
    print(f"line {number.value}", flush=True)
    time.sleep(0.02)
