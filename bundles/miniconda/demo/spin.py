"""Burns CPU for SECONDS (default 5) on one thread, and says how much it was given."""

import sys
import time

seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
wall, cpu = time.monotonic(), time.process_time()
while time.monotonic() - wall < seconds:
    for _ in range(10_000):
        pass
used, passed = time.process_time() - cpu, time.monotonic() - wall
print(f"used {used:.2f} CPU-seconds in {passed:.1f} s = {100 * used / passed:.0f} %")
