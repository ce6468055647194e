"""Lives by its clocks in four ways at once, and tells what they show: no clock may go back, and nobody may oversleep."""
import asyncio
import select
import threading
import time

turns = {"asyncio": 0, "event": 0, "sleep": 0, "select": 0}
last = [0, 0]
lock = threading.Lock()


def look():
    with lock:
        now = [time.clock_gettime_ns(clock) for clock in (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME)]
        for name, before, after in zip(("monotonic", "boottime"), last, now):
            if after < before:
                print(f"{name} went back by {before - after}", flush=True)
        last[:] = now
        return now


def event():
    never = threading.Event()
    while True:
        never.wait(0.02)
        look()
        turns["event"] += 1


def sleep():
    while True:
        time.sleep(0.02)
        look()
        turns["sleep"] += 1


def wait_for_nothing():
    while True:
        select.select([], [], [], 0.02)
        look()
        turns["select"] += 1


async def main():
    for other in (event, sleep, wait_for_nothing):
        threading.Thread(target=other, daemon=True).start()
    while True:
        await asyncio.sleep(0.02)
        monotonic, boottime = look()
        turns["asyncio"] += 1
        counts = " ".join(str(count) for count in turns.values())
        print(f"at {monotonic} {boottime} {counts}", flush=True)


asyncio.run(main())
