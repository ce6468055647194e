"""Ends with a code while a child of it lives on that does not want to stop."""
import os
import signal
import sys
import time

code = int(sys.argv[1])
up, tell = os.pipe()
if os.fork() == 0:
    def refuse(*_):
        os.write(1, b"leftover got TERM\n")
    signal.signal(signal.SIGTERM, refuse)
    os.write(tell, b"x")
    while True:
        time.sleep(1000)
os.read(up, 1)
os.write(1, b"ready\n")
sys.stdin.readline()
os._exit(code)
