"""Prints, as one line of JSON, what a process finds when it starts."""
import json
import os
import sys
import termios


def status():
    with open("/proc/self/status") as lines:
        return dict((part.strip() for part in line.split(":", 1)) for line in lines if ":" in line)


def command_of(pid):
    with open(f"/proc/{pid}/cmdline") as line:
        return line.read().rstrip("\0").split("\0")


def descriptors():
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass  # the one that listed the directory
    return found


def terminal():
    if not os.isatty(0):
        return None
    columns, rows = os.get_terminal_size(0)
    try:
        controlling = os.open("/dev/tty", os.O_RDWR)
    except OSError:
        return {"rows": rows, "columns": columns, "controlling": False}
    os.close(controlling)
    return {
        "rows": rows,
        "columns": columns,
        "controlling": True,
        "session": termios.tcgetsid(0) if hasattr(termios, "tcgetsid") else os.getsid(0),
        "foreground": os.tcgetpgrp(0),
    }


fields = status()
facts = {
    "pid": os.getpid(),
    "parent": os.getppid(),
    "parent_command": command_of(os.getppid()),
    "group": os.getpgrp(),
    "session": os.getsid(0),
    "blocked": int(fields["SigBlk"], 16),
    # Python itself ignores SIGPIPE (13) and SIGXFSZ (25) and catches SIGINT (2).
    "ignored": int(fields["SigIgn"], 16) & ~(1 << 12 | 1 << 24),
    "descriptors": descriptors(),
    "directory": os.getcwd(),
    "environment": dict(os.environ),
    "arguments": sys.argv[1:],
    "ttys": [os.isatty(n) for n in range(3)],
    "terminal": terminal(),
}
print(json.dumps(facts), flush=True)
