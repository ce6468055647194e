"""Fills so many MiB with bytes that follow from a seed, looks through all of them so many times, and says four times in each what they were.

large.py MIB TIMES
"""
import hashlib
import random
import sys

MIB = 1 << 20
mib, times = int(sys.argv[1]), int(sys.argv[2])
source = random.Random(7)
# No page of one block is a page of another one, and none can be compressed.
noise = int.from_bytes(source.randbytes(MIB), "little")
blocks, first = [], []
for _ in range(mib):
    block = noise ^ int.from_bytes(source.randbytes(8) * (MIB // 8), "little")
    blocks.append(block.to_bytes(MIB, "little"))
    first.append(hashlib.sha256(blocks[-1]).digest())
print("filled", flush=True)
for turn in range(1, times + 1):
    digest = hashlib.sha256()
    for number, (block, wanted) in enumerate(zip(blocks, first), 1):
        found = hashlib.sha256(block).digest()
        assert found == wanted, f"block {number} is another one"
        digest.update(found)
        if number % (mib // 4) == 0:
            print(f"turn {turn}, {number} blocks: {digest.hexdigest()}", flush=True)
