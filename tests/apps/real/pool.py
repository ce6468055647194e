"""A pool of worker processes that computes digests; they are printed in the order of their numbers."""
import hashlib
import multiprocessing
import sys


def work(number):
    digest = str(number).encode()
    for _ in range(20000):
        digest = hashlib.sha256(digest).digest()
    return number, digest.hex()


if __name__ == "__main__":
    with multiprocessing.Pool(4) as pool:
        for number, digest in pool.imap(work, range(int(sys.argv[1])), chunksize=2):
            print(number, digest, flush=True)
