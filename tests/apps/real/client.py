"""Load for the real apps of docs/apps.md: counters in the app, one for each lane, and a clock that the app keeps itself.

client.py KIND ADDRESS PORT LANES

Each lane has a connection and a thread. A step makes the app count one further and is acknowledged by it with the new count;
only then a line `LANE COUNT TICKS` is printed. TICKS is something that the app does by a timer of its own. So whoever has the
lines knows what the app promised, and whether it still works by itself.
"""
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time

kind, address, port, lanes = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
PACE = 0.02


class Lines:
    """Ours: a line with the lane's name, answered with `COUNT TICKS`."""

    def __init__(self, lane):
        self.lane = lane
        self.stream = socket.create_connection((address, port), 10).makefile("rw", newline="\n")

    def ask(self, text):
        self.stream.write(text + "\n")
        self.stream.flush()
        return self.stream.readline()

    def step(self):
        return tuple(map(int, self.ask(self.lane).split()))


class Http:
    """The same by HTTP, on a connection that is kept."""

    def __init__(self, lane):
        self.lane = lane
        self.connection = http.client.HTTPConnection(address, port, timeout=10)

    def get(self, path):
        self.connection.request("GET", path)
        return self.connection.getresponse().read().decode()

    def step(self):
        return tuple(map(int, self.get("/" + self.lane).split()))


class Nginx(Http):
    """The counter is the one of all requests, in the workers' shared memory; for the clock an idle connection is to be closed."""

    def __init__(self, lane):
        super().__init__(lane)
        self.closed = 0
        threading.Thread(target=self.idle, daemon=True).start()

    def idle(self):
        while True:
            idle = socket.create_connection((address, port), 10)
            idle.settimeout(None)
            idle.sendall(b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
            while idle.recv(65536):
                pass
            self.closed += 1

    def step(self):
        requests = re.findall(r"requests\s+\d+ \d+ (\d+)", self.get("/status"))
        # The requests of the idle connections are no steps of ours.
        return int(requests[0]), self.closed


class Redis(Lines):
    def reply(self):
        line = self.stream.readline()
        if line[0] == "$":
            return self.stream.read(int(line[1:]) + 2)
        return line[1:]

    def command(self, *words):
        self.stream.write(" ".join(words) + "\r\n")
        self.stream.flush()
        return self.reply()

    def step(self):
        count = int(self.command("INCR", "lane" + self.lane))
        return count, int(re.search(r"lru_clock:(\d+)", self.command("INFO", "server")).group(1))


class Memcached(Lines):
    def __init__(self, lane):
        super().__init__(lane)
        self.ask(f"add lane{lane} 0 0 1\r\n0\r")

    def step(self):
        count = int(self.ask(f"incr lane{self.lane} 1\r"))
        self.stream.write("stats\r\n")
        self.stream.flush()
        uptime = 0
        for line in iter(self.stream.readline, "END\r\n"):
            found = re.match(r"STAT uptime (\d+)", line)
            uptime = int(found.group(1)) if found else uptime
        return count, uptime


class Sql:
    """A client of the database's own; what it prints follows the commit."""

    def __init__(self, lane, command):
        self.lane = lane
        self.program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def step(self):
        self.program.stdin.write(
            f"BEGIN; UPDATE lanes SET count = count + 1 WHERE lane = {self.lane}; COMMIT;\n"
            f"SELECT concat_ws(' ', 'got', count, (SELECT ticks FROM clock)) FROM lanes WHERE lane = {self.lane};\n"
        )
        self.program.stdin.flush()
        for line in self.program.stdout:
            if line.startswith("got"):
                return tuple(map(int, line.split()[1:]))
        raise EOFError("the database's client ended")


class Postgres(Sql):
    def __init__(self, lane):
        super().__init__(lane, ["psql", "-qAt", "-h", address, "-p", str(port), "-U", "postgres"])


class Mariadb(Sql):
    def __init__(self, lane):
        super().__init__(lane, ["mariadb", "-nNB", "-h", address, "-P", str(port), "-u", "job", "job"])


class Kernel:
    """A Jupyter kernel, asked by Jupyter's client; the clock is a task in its event loop."""

    def __init__(self, lane):
        from jupyter_client import BlockingKernelClient

        with open("/data/kernel.json") as file:
            facts = json.load(file)
        self.client = BlockingKernelClient()
        self.client.load_connection_info({**facts, "ip": address})
        self.client.start_channels()
        self.client.wait_for_ready(timeout=20)
        self.run("try:\n lanes\nexcept NameError:\n"
                 " import asyncio\n lanes, ticks = {}, 0\n"
                 " async def tick():\n  global ticks\n  while True:\n   await asyncio.sleep(0.05)\n   ticks += 1\n"
                 " task = asyncio.get_running_loop().create_task(tick())")
        self.lane = lane

    def run(self, code):
        said = []

        def hear(message):
            content = message["content"]
            said.append(content.get("text", "") + "".join(content.get("traceback", [])))

        self.client.execute_interactive(code, output_hook=hear, timeout=10, store_history=False)
        return "".join(said)

    def step(self):
        lane = self.lane
        return tuple(map(int, self.run(f"lanes[{lane}] = lanes.get({lane}, 0) + 1\nprint(lanes[{lane}], ticks)").split()))


class Terminal:
    """A shell in a terminal multiplexer: what is typed and what is shown go through the multiplexer's own commands. A program in
    another window keeps the time."""

    def __init__(self, lane):
        self.asked = 0

    def run(self, *words):
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=10).stdout

    def step(self):
        self.asked += 1
        # Lines of earlier hosts' clients, which may have had this process id, are still shown.
        name = f"{os.urandom(4).hex()}x{self.asked}"
        self.type(f"echo got {name} $((++n)) $(cat /data/ticks) end\n")
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            found = re.search(rf"got {name} (\d+) (\d+) end", self.shown())
            if found:
                return tuple(map(int, found.groups()))
            time.sleep(0.02)
        raise TimeoutError("the shell does not answer")


class Tmux(Terminal):
    def type(self, text):
        self.run("tmux", "send-keys", "-t", "job:0", "-l", text)

    def shown(self):
        return self.run("tmux", "capture-pane", "-p", "-J", "-t", "job:0")


class Screen(Terminal):
    def type(self, text):
        self.run("screen", "-S", "job", "-p", "0", "-X", "stuff", text.replace("$", r"\$"))

    def shown(self):
        path = f"/tmp/shown-{os.getpid()}"
        self.run("screen", "-S", "job", "-p", "0", "-X", "hardcopy", path)
        try:
            with open(path, errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return ""


KINDS = {
    "lines": Lines, "http": Http, "nginx": Nginx, "redis": Redis, "memcached": Memcached, "postgres": Postgres,
    "mariadb": Mariadb, "kernel": Kernel, "tmux": Tmux, "screen": Screen,
}


def drive(number):
    try:
        lane = KINDS[kind](str(number))
        while True:
            count, ticks = lane.step()
            os.write(1, f"{number} {count} {ticks}\n".encode())
            time.sleep(PACE)
    except Exception as error:
        os.write(2, f"lane {number}: {type(error).__name__}: {error}\n".encode())
        os._exit(1)


threads = [threading.Thread(target=drive, args=(number,)) for number in range(lanes)]
for thread in threads:
    thread.start()
