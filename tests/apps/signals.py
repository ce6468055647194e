"""Prints every signal it gets, in itself and in a few children of the same process group."""
import os
import signal
import sys

children = int(sys.argv[1]) if len(sys.argv) > 1 else 0
# Blocked and then waited for: nothing is lost between two signals, and none has its default effect.
signals = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
role = "main"
for number in range(children):
    if os.fork() == 0:
        role = f"child{number}"
        break
os.write(1, f"{os.getpid()} {role} ready\n".encode())
while True:
    number = signal.sigwait(signals)
    os.write(1, f"{os.getpid()} {role} got {int(number)}\n".encode())
