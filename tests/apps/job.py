"""A job of many parts, each of which must survive a checkpoint. Every line of output proves that all of them work.

Parts: a shell pipeline as children; threads that count under a lock; a child behind a unix socket pair; a named unix
socket with a client inside; a listening TCP socket; epoll with a timer and an event descriptor; a private memory with a
known digest; an anonymous memory file; a deleted temporary file; a log that is read back, if one is named.

    job.py [PACE [LOG]]      PACE: seconds between two lines, 0.05 by default

Lines are `round N ok`, or `round N BROKEN: PART: REASON`; the job never stops by itself. SIGTERM ends it with code 0.
"""
import hashlib
import mmap
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback

PACE = float(sys.argv[1]) if len(sys.argv) > 1 else 0.05
LIMIT = 20


class Pipeline:
    """A shell pipeline that sends back, in capitals, what it is sent."""

    def __init__(self):
        # One line at a time through both, which a plain `tr` would buffer.
        script = "while read -r line; do echo \"$line\"; done | while read -r line; do echo \"${line^^}\"; done"
        self.shell = subprocess.Popen(
            ["bash", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def check(self, number):
        self.shell.stdin.write(f"abc {number}\n")
        self.shell.stdin.flush()
        answer = self.shell.stdout.readline()
        assert answer == f"ABC {number}\n", repr(answer)


class Threads:
    """Threads that all have to take their turn in each round."""

    def __init__(self, count=3):
        self.start, self.end = threading.Barrier(count + 1), threading.Barrier(count + 1)
        self.lock, self.turns, self.count = threading.Lock(), 0, count
        for _ in range(count):
            threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            self.start.wait()
            with self.lock:
                self.turns += 1
            self.end.wait()

    def check(self, number):
        before = self.turns
        self.start.wait(LIMIT)
        self.end.wait(LIMIT)
        assert self.turns == before + self.count, f"{self.turns - before} turns"


class Partner:
    """A forked child that answers on a socket pair and keeps a count of its own."""

    def __init__(self):
        self.ours, theirs = socket.socketpair()
        if os.fork() == 0:
            self.ours.close()
            total = 0
            while data := theirs.recv(64):
                total += int(data)
                theirs.sendall(str(total).encode())
            os._exit(0)
        theirs.close()
        self.ours.settimeout(LIMIT)
        self.total = 0

    def check(self, number):
        self.total += number
        self.ours.sendall(str(number).encode())
        answer = int(self.ours.recv(64))
        assert answer == self.total, f"{answer} instead of {self.total}"


class Server:
    """A listening socket with an echoing thread. Named unix sockets keep their client; TCP gets a new one each round."""

    def __init__(self, listener, keep):
        self.listener, self.keep, self.client = listener, keep, None
        threading.Thread(target=self.run, daemon=True).start()
        if keep:
            self.client = self.connect()

    def run(self):
        while True:
            peer, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(peer,), daemon=True).start()

    @staticmethod
    def serve(peer):
        with peer:
            while data := peer.recv(64):
                peer.sendall(data[::-1])

    def connect(self):
        client = socket.socket(self.listener.family, socket.SOCK_STREAM)
        client.settimeout(LIMIT)
        client.connect(self.listener.getsockname())
        return client

    def check(self, number):
        text = f"hello {number}".encode()
        answer = self.ask(text)
        if not answer and not self.keep:
            # A resume closes what was connected by TCP at the freeze, and clients have to connect again.
            answer = self.ask(text)
        assert answer == text[::-1], repr(answer)

    def ask(self, text):
        client = self.client or self.connect()
        try:
            client.sendall(text)
            return client.recv(64)
        except ConnectionError:
            return b""
        finally:
            if not self.keep:
                client.close()


class Events:
    """A timer and an event descriptor, both watched by epoll.

    The timer is set anew for each round: CRIU 4.2 forgets the interval of one that has expired and was not read, which
    `ticker.py` shows.
    """

    def __init__(self):
        self.selector = selectors.EpollSelector()
        self.event = os.eventfd(0)
        self.timer = os.timerfd_create(1)  # CLOCK_MONOTONIC
        self.selector.register(self.event, selectors.EVENT_READ)
        self.selector.register(self.timer, selectors.EVENT_READ)

    def check(self, number):
        os.timerfd_settime(self.timer, initial=0.01)
        os.eventfd_write(self.event, number)
        waited = {self.event, self.timer}
        while waited:
            ready = self.selector.select(LIMIT)
            assert ready, f"nothing from descriptors {waited} in {LIMIT} s"
            for key, _ in ready:
                value = int.from_bytes(os.read(key.fd, 8), sys.byteorder)
                assert key.fd == self.timer or value == number, f"event {value}"
                waited.discard(key.fd)


class Memory:
    """Private pages that must never change, and shared ones (an anonymous memory file) that count."""

    def __init__(self):
        self.block = random.Random(7).randbytes(8 << 20)
        self.digest = hashlib.sha256(self.block).hexdigest()
        file = os.memfd_create("job")
        os.ftruncate(file, mmap.PAGESIZE)
        self.shared = mmap.mmap(file, mmap.PAGESIZE)
        self.rounds = 0

    def check(self, number):
        assert hashlib.sha256(self.block).hexdigest() == self.digest, "private pages changed"
        count = int.from_bytes(self.shared[:8], "little")
        assert count == self.rounds, f"shared pages say {count}, not {self.rounds}"
        self.rounds += 1
        self.shared[:8] = self.rounds.to_bytes(8, "little")


class Deleted:
    """An open file without a name."""

    def __init__(self):
        self.file = tempfile.TemporaryFile()
        self.expected = b""

    def check(self, number):
        # Short enough to stay below the size up to which CRIU carries such files along.
        if len(self.expected) > 4096:
            self.file.truncate(0)
            self.file.seek(0)
            self.expected = b""
        line = f"{number}\n".encode()
        self.file.write(line)
        self.file.flush()
        self.expected += line
        content = os.pread(self.file.fileno(), 1 << 16, 0)
        assert content == self.expected, f"{len(content)} bytes instead of {len(self.expected)}"


class Log:
    """A file that must have every line so far, wherever the job has been."""

    def __init__(self, path):
        self.file = open(path, "w+")
        self.lines = 0

    def check(self, number):
        self.file.write(f"{number}\n")
        self.file.flush()
        self.lines += 1
        self.file.seek(0)
        found = [int(line) for line in self.file]
        assert found == list(range(1, number + 1)), f"{len(found)} lines instead of {self.lines}"


def unix_listener():
    path = f"/run/job-{os.getpid()}.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen()
    return listener


def stop(*_):
    os.write(1, b"stopped\n")
    os._exit(0)


def main():
    # Children first: a thread's lock must not be copied in mid-air.
    parts = {"pipeline": Pipeline(), "partner": Partner()}
    parts["threads"] = Threads()
    parts["unix socket"] = Server(unix_listener(), keep=True)
    parts["tcp"] = Server(socket.create_server(("127.0.0.1", 0)), keep=False)
    parts["events"] = Events()
    parts["memory"] = Memory()
    parts["deleted file"] = Deleted()
    if len(sys.argv) > 2:
        parts["log"] = Log(sys.argv[2])
    # Only now: the forked partner is not to announce anything.
    signal.signal(signal.SIGTERM, stop)
    os.write(1, b"ready\n")
    number = 0
    while True:
        number += 1
        broken = []
        for name, part in parts.items():
            try:
                part.check(number)
            except Exception as error:  # any failure is a finding, and the other parts still have to be tried
                broken.append(f"{name}: {traceback.format_exception_only(error)[-1].strip()}")
        result = "ok" if not broken else "BROKEN: " + "; ".join(broken)
        os.write(1, f"round {number} {result}\n".encode())
        # Not sigtimedwait(): when a freeze interrupts it, Python takes the interruption for a signal.
        time.sleep(PACE)


main()
