"""Allocates memory, 8 MiB at a time, until it has SIZE (default 256 MiB) or is killed for it."""

import sys

want = int(sys.argv[1]) if len(sys.argv) > 1 else 256
held = []
while len(held) * 8 < want:
    # Not zeroes: untouched pages of zeroes cost nothing.
    held.append(b"\x01" * (8 << 20))
    if sys.stdout.isatty():
        print(f"\rholding {len(held) * 8} MiB", end="", flush=True)
print(f"held {want} MiB and was not stopped")
