"""Counts in processes of several users: as root, as two whose numbers were changed, and as one that su started.

    users.py DIRECTORY

Each line has a name, a number, and who the process is: users, groups, limit of open files and capabilities, as it finds them
anew each time. The number is kept in a file in DIRECTORY that only its owner may open.
"""
import os
import resource
import subprocess
import sys
import time


def work(name, directory):
    number = 0
    with open(f"{directory}/{name}", "w+", opener=lambda path, flags: os.open(path, flags, 0o600)) as own:
        while True:
            number += 1
            own.seek(0)
            own.write(f"{number}\n")
            own.flush()
            own.seek(0)
            with open("/proc/self/status") as status:
                able = next(line.split()[1] for line in status if line.startswith("CapEff:"))
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)
            who = [*os.getresuid(), *os.getresgid(), sorted(os.getgroups()), limit, able]
            os.write(1, f"{name} {own.readline().strip()} {who}\n".encode())
            time.sleep(0.05)


if len(sys.argv) > 2:
    work(sys.argv[2], sys.argv[1])
directory = sys.argv[1]
for user in (33, 1000):
    if os.fork() == 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (user + 100, user + 200))
        os.setgroups([user, 7])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        work(f"user-{user}", directory)
subprocess.Popen(["su", "-s", "/bin/sh", "www-data", "-c", f"exec python3 {__file__} {directory} su"])
work("root", directory)
