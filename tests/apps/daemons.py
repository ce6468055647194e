"""Makes a daemon, by two forks, and waits for what comes to it, as process 1 of a container has to.

Each daemon says again and again whose child it is. Another one is made when /tmp/more appears; all end when /tmp/end does, and
`none left` is said.
"""
import os
import time

made = 0


def daemon():
    global made
    made += 1
    if os.fork() == 0:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        while not os.path.exists("/tmp/end"):
            print(f"daemon {made} of {os.getppid()}", flush=True)
            time.sleep(0.05)
        os._exit(0)


daemon()
while True:
    if os.path.exists("/tmp/more"):
        os.unlink("/tmp/more")
        daemon()
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        print("none left", flush=True)
    time.sleep(0.05)
