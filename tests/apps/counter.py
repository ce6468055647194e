"""Numbers its lines, so that a missing, repeated or torn one shows."""
import argparse
import itertools
import os
import time

parser = argparse.ArgumentParser()
parser.add_argument("--pace", type=float, default=0.0, help="seconds between two lines")
parser.add_argument("--count", type=int, help="end after so many lines")
options = parser.parse_args()
numbers = range(1, options.count + 1) if options.count else itertools.count(1)
for number in numbers:
    # One write for each line, so that the order on the stream is the order of the work.
    line = f"line {number}\n".encode()
    while line:
        line = line[os.write(1, line):]
    if options.pace:
        time.sleep(options.pace)
