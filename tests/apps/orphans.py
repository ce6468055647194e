"""Leaves orphans: each child makes a grandchild and ends; the grandchildren end together, when nobody here waits."""
import os
import signal
import sys

count = int(sys.argv[1])
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
go, start = os.pipe()
alive, held = os.pipe()
for _ in range(count):
    child = os.fork()
    if child == 0:
        if os.fork() > 0:
            os._exit(0)
        # Only the first process may keep the writing end open, or nobody would ever see its end.
        os.close(start)
        os.read(go, 1)
        os._exit(3)
    os.waitpid(child, 0)
os.close(held)
os.write(1, f"ready {count}\n".encode())
os.close(start)
os.read(alive, 1)
os.write(1, b"orphans ended\n")
signal.sigwait([signal.SIGTERM])
sys.exit(0)
