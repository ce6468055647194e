"""A service that counts, as asyncio server or as pool of threads with SQLite; see client.py.

service.py asyncio|sqlite PORT
"""
import asyncio
import socketserver
import sqlite3
import sys
import threading

kind, port = sys.argv[1], int(sys.argv[2])
lanes, ticks = {}, 0


async def serve():
    async def answer(reader, writer):
        while line := await reader.readline():
            lane = int(line)
            lanes[lane] = lanes.get(lane, 0) + 1
            writer.write(f"{lanes[lane]} {ticks}\n".encode())
            await writer.drain()
        writer.close()

    async def tick():
        global ticks
        while True:
            await asyncio.sleep(0.05)
            ticks += 1

    server = await asyncio.start_server(answer, "0.0.0.0", port)
    clock = asyncio.create_task(tick())
    print("ready", flush=True)
    await server.serve_forever()
    await clock


class Sqlite(socketserver.StreamRequestHandler):
    """A connection to the database for each client; each count is a transaction, and a thread writes another one by the clock."""

    @staticmethod
    def connect():
        # With a write-ahead log a resume would lose a lock that other processes go by (docs/limits.md).
        return sqlite3.connect("/data/job.db", timeout=20, isolation_level=None)

    @classmethod
    def begin(cls):
        database = cls.connect()
        database.execute("CREATE TABLE lanes (lane INTEGER PRIMARY KEY, count INTEGER)")
        database.execute("CREATE TABLE clock (ticks INTEGER)")
        database.execute("INSERT INTO clock VALUES (0)")
        threading.Thread(target=cls.tick, daemon=True).start()

    @classmethod
    def tick(cls):
        database = cls.connect()
        while True:
            database.execute("UPDATE clock SET ticks = ticks + 1")
            threading.Event().wait(0.05)

    def handle(self):
        database = self.connect()
        for line in self.rfile:
            lane = int(line)
            counted = database.execute(
                "INSERT INTO lanes VALUES (?, 1) ON CONFLICT DO UPDATE SET count = count + 1 RETURNING count", (lane,)
            ).fetchall()
            [(ticks,)] = database.execute("SELECT ticks FROM clock").fetchall()
            self.wfile.write(f"{counted[0][0]} {ticks}\n".encode())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    request_queue_size = 100


if kind == "asyncio":
    asyncio.run(serve())
else:
    Sqlite.begin()
    with Server(("0.0.0.0", port), Sqlite) as server:
        print("ready", flush=True)
        server.serve_forever()
