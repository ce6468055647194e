"""Which of its implementations the C library chose for this processor, or chose under a baseline, by their places in it.

    chosen.py           prints them as one line of JSON
    chosen.py JSON      calls them, each in a process of its own, and prints what became of it
"""
import ctypes
import json
import os
import sys

NAMES = ["memcpy", "memmove", "memset", "memchr", "memcmp", "strlen", "strnlen", "strchr", "strrchr", "strcmp", "strncmp",
         "strcpy", "strcat", "strcasecmp", "rawmemchr", "stpcpy", "strncpy", "strspn", "strcspn"]
libc = ctypes.CDLL("libc.so.6")


def base():
    with open("/proc/self/maps") as maps:
        return min(int(line.split("-")[0], 16) for line in maps if "libc.so.6" in line)


def address(name):
    return ctypes.cast(getattr(libc, name), ctypes.c_void_p).value


def call(place):
    """With arguments that suit all of them; an instruction that the processor lacks ends the process."""
    one = ctypes.create_string_buffer(b"a" * 300 + b"b", 1024)
    two = ctypes.create_string_buffer(b"a" * 300 + b"b", 1024)
    function = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)(place)
    def with_second(name):
        return ctypes.addressof(two) if name not in ("memset", "memchr", "strchr", "strrchr", "rawmemchr", "strnlen") else ord("b")
    return one, function, with_second


def ended(name, place):
    pid = os.fork()
    if pid == 0:
        one, function, with_second = call(place)
        function(ctypes.addressof(one), with_second(name), 300)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status)


if len(sys.argv) == 1:
    print(json.dumps({name: address(name) - base() for name in NAMES}), flush=True)
else:
    places = json.loads(sys.argv[1])
    print(json.dumps({name: ended(name, base() + place) for name, place in places.items()}), flush=True)
