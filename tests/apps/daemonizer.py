"""Does what a daemon does: forks twice, takes a session of its own and lets go of its streams."""
import os
import signal
import sys
import time

ready, tell = os.pipe()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
if os.fork() == 0:
    os.setsid()
    if os.fork() > 0:
        os._exit(0)
    nothing = os.open("/dev/null", os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    with open("/tmp/daemon.log", "a", buffering=1) as log:
        def stop(*_):
            log.write("daemon got TERM\n")
            os._exit(0)
        signal.signal(signal.SIGTERM, stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        log.write("daemon up\n")
        os.write(tell, b"x")
        for number in range(1, 10**9):
            log.write(f"tick {number}\n")
            time.sleep(0.05)
os.wait()
os.read(ready, 1)
os.write(1, b"ready\n")
if len(sys.argv) > 1:
    sys.exit(int(sys.argv[1]))
signal.sigwait([signal.SIGTERM])
