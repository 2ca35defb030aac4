"""Rung 2 with a channel: conda and Python from a conda channel, without an installer.

Run inside a cell of the bundle, as root. Takes micromamba, a static program, from the channel itself
(checked against the digest in the channel's index) and lets it make /opt/conda.
Usage: channel.py URL PYTHON_VERSION
"""

import hashlib
import io
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import urllib.request

SUBDIR = {"x86_64": "linux-64", "aarch64": "linux-aarch64"}


def fetch(url):
    with urllib.request.urlopen(url, timeout=60) as r:
        return r.read()


def order(version):
    """Sorts 1.5.10 after 1.5.9; conda's full rules are not needed for one package's releases."""
    return [int(n) for n in re.findall(r"\d+", version)]


def micromamba(channel, subdir):
    """The newest micromamba of the channel that is packed as .tar.bz2, unpacked to a program."""
    index = json.loads(fetch(f"{channel}/{subdir}/repodata.json"))
    found = [(order(p["version"]), p["build_number"], name) for name, p in index["packages"].items() if p["name"] == "micromamba"]
    if not found:
        sys.exit(f"{channel}/{subdir} has no micromamba; conda-forge and its mirrors do")
    name = max(found)[2]
    data = fetch(f"{channel}/{subdir}/{name}")
    want = index["packages"][name]["sha256"]
    if hashlib.sha256(data).hexdigest() != want:
        sys.exit(f"{name}: its digest is not the one in the channel's index")
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:bz2") as t:
        program = t.extractfile("bin/micromamba").read()
    path = "/usr/local/bin/micromamba"
    with open(path, "wb") as f:
        f.write(program)
    os.chmod(path, 0o755)
    return path, name


def main():
    channel, python = sys.argv[1].rstrip("/"), sys.argv[2]
    subdir = SUBDIR.get(platform.machine())
    if subdir is None:
        sys.exit(f"no conda channel has packages for {platform.machine()}")
    program, name = micromamba(channel, subdir)
    print(f"using {name}", flush=True)
    root = ["--root-prefix", "/opt/conda"]
    subprocess.run([program, "create", "--yes", "--quiet", *root, "--prefix", "/opt/conda", "--override-channels",
                    "--channel", channel, f"python={python}", "conda", "pip"], check=True)
    subprocess.run([program, "clean", "--all", "--yes", "--quiet", *root], check=True)
    os.remove(program)


main()
