"""Counts a periodic timer's expiries, read so rarely that one is always waiting. Each line: `ticks TOTAL`."""
import os
import time

timer = os.timerfd_create(1)  # CLOCK_MONOTONIC
os.timerfd_settime(timer, initial=0.01, interval=0.01)
total = 0
while True:
    time.sleep(0.1)
    total += int.from_bytes(os.read(timer, 8), "little")
    os.write(1, f"ticks {total}\n".encode())
