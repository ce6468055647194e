"""Trains a small network with numpy and prints the loss of each step, to the last digit."""
import sys

import numpy as np

steps = int(sys.argv[1])
source = np.random.default_rng(1)
data = source.standard_normal((2000, 300))
wanted = np.sin(data @ source.standard_normal((300, 10)))
first = source.standard_normal((300, 400)) * 0.05
second = source.standard_normal((400, 10)) * 0.05
for step in range(steps):
    # Each step draws anew: the generator's state is part of what is resumed.
    some = source.permutation(len(data))[:1000]
    hidden = np.tanh(data[some] @ first)
    error = hidden @ second - wanted[some]
    print(step, repr(float((error**2).mean())), flush=True)
    back = (error @ second.T) * (1 - hidden**2)
    second -= 2e-4 * hidden.T @ error
    first -= 2e-4 * data[some].T @ back
