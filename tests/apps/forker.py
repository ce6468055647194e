"""Makes processes as fast as it can: every other one becomes an orphan that ends soon after."""
import os
import sys
import time

seconds, code = float(sys.argv[1]), int(sys.argv[2])
end = time.monotonic() + seconds
made = 0
while time.monotonic() < end:
    child = os.fork()
    if child == 0:
        if made % 2 and os.fork() > 0:
            os._exit(0)
        os._exit(made % 256)
    os.waitpid(child, 0)
    made += 2 if made % 2 else 1
os.write(1, f"made {made}\n".encode())
os._exit(code)
