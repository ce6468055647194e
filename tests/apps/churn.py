"""Memory of known contents that goes on changing while it is looked at, and children that come and go.

    churn.py MIB [--still]      --still: nothing changes but on SIGUSR2

Prints `digest HEX` of all of it when SIGUSR1 asks; SIGUSR2 rewrites 1 MiB in the middle and prints `rewritten`.
"""
import hashlib
import os
import random
import signal
import sys
import time

MIB = 1 << 20
size, still = int(sys.argv[1]), "--still" in sys.argv
source = random.Random(11)
memory = bytearray(source.randbytes(size * MIB))
model = hashlib.sha256(memory).hexdigest()
signals = {signal.SIGUSR1, signal.SIGUSR2}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
os.write(1, f"digest {model}\nready\n".encode())
turn = 0
while True:
    time.sleep(0.005)
    if signal.SIGUSR1 in signal.sigpending():
        signal.sigtimedwait([signal.SIGUSR1], 0)
        # What is in memory against what was written to it, page by page: a torn page would show.
        bad = 0 if still else sum(
            memory[at:at + 8] != memory[at + 4088:at + 4096] for at in range(0, turn % (size * 256) * 4096, 4096)
        )
        os.write(1, f"digest {hashlib.sha256(memory).hexdigest()} torn {bad}\n".encode())
    if signal.SIGUSR2 in signal.sigpending():
        signal.sigtimedwait([signal.SIGUSR2], 0)
        middle = size // 2 * MIB
        # Page by page: a copy of all of it would be new memory, too.
        for at in range(middle, middle + MIB, 4096):
            memory[at:at + 4096] = source.randbytes(4096)
        os.write(1, b"rewritten\n")
    if not still:
        for _ in range(16):
            at = turn % (size * 256) * 4096
            stamp = turn.to_bytes(8, "little")
            memory[at:at + 4096] = stamp + bytes(4080) + stamp
            turn += 1
        if turn % 64 == 0:
            child = os.fork()
            if child == 0:
                # A copy of all of it, for a moment.
                memory[0:8] = b"child..."
                os._exit(0)
            os.waitpid(child, 0)
