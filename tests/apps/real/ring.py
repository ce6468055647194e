"""A ring of many processes, each with a pipe to the next one: every process adds its number to what goes round.

ring.py PROCESSES ROUNDS
"""
import os
import sys

processes, rounds = int(sys.argv[1]), int(sys.argv[2])
pipes = [os.pipe() for _ in range(processes + 1)]
children = []
for number in range(processes):
    child = os.fork()
    if child == 0:
        reader, writer = pipes[number][0], pipes[number + 1][1]
        for pipe in pipes:
            for end in pipe:
                if end not in (reader, writer):
                    os.close(end)
        seen = 0
        while token := os.read(reader, 8):
            seen += 1
            os.write(writer, (int.from_bytes(token, "little") + number * seen).to_bytes(8, "little"))
        os._exit(0)
    children.append(child)
token = 0
for turn in range(1, rounds + 1):
    os.write(pipes[0][1], token.to_bytes(8, "little"))
    token = int.from_bytes(os.read(pipes[processes][0], 8), "little") % (1 << 40)
    print(turn, token, flush=True)
for pipe in pipes:
    os.close(pipe[1])
for child in children:
    assert os.waitpid(child, 0)[1] == 0
