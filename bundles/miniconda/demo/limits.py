"""What this program is and what it may use, as seen from inside the cell."""

import getpass
import os
import platform


def read(path):
    try:
        with open("/sys/fs/cgroup/" + path) as f:
            return f.read().strip()
    except OSError:
        return None


def limits():
    """Memory in bytes, and CPU time as quota/period in µs; from cgroup v2's files, else v1's."""
    if read("cgroup.controllers") is not None:
        quota, _, period = (read("cpu.max") or "max 100000").partition(" ")
        return read("memory.max") or "max", f"{quota}/{period}"
    memory = read("memory/memory.limit_in_bytes") or "max"
    # v1 says "no limit" by a huge number, one page short of 2^63.
    if memory.isdigit() and int(memory) > 1 << 62:
        memory = "max"
    quota, period = read("cpu/cpu.cfs_quota_us"), read("cpu/cpu.cfs_period_us")
    return memory, f"{'max' if quota in (None, '-1') else quota}/{period or 100000}"


def main():
    try:
        import numpy

        arrays = f"numpy {numpy.__version__}"
        assert numpy.dot([1.0, 2.0], [3.0, 4.0]) == 11.0
    except ImportError:
        arrays = "no numpy"
    memory, cpu = limits()
    print(f"Python {platform.python_version()}  user {getpass.getuser()}  {arrays}")
    print(f"memory limit {memory}   cpu {cpu}   CPUs to run on {len(os.sched_getaffinity(0))}")


main()
