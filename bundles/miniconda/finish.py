"""The last step of making the bundle: config.json becomes the same one on every rung.

Run inside a cell of the bundle, as root, with the bundle at /bundle; so the host needs no Python.
What `gpucell pull` wrote stays (namespaces, seccomp profile, masked paths, limits): only what is
said here changes. Usage: finish.py RUNG
"""

import json
import sys

HOME = "/home/aiuser"
ENV = {
    "PATH": "/opt/conda/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": HOME,
    "USER": "aiuser",
    "LANG": "C.UTF-8",
    "CONDA_ENVS_PATH": HOME + "/workspace/.conda/envs",
    "CONDA_PKGS_DIRS": HOME + "/workspace/.conda/pkgs",
}

path = "/bundle/config.json"
with open(path) as f:
    config = json.load(f)

process = config["process"]
process["user"] = {"uid": 1000, "gid": 1000}
process["cwd"] = HOME + "/workspace"
process["args"] = ["/bin/bash"]
kept = [e for e in process.get("env", []) if e.partition("=")[0] not in ENV]
process["env"] = [f"{k}={v}" for k, v in ENV.items()] + kept

# The volume: a folder of the bundle, so that work outlives the root file system.
config["mounts"] = [m for m in config["mounts"] if m["destination"] != HOME + "/workspace"] + [
    {
        "destination": HOME + "/workspace",
        "type": "bind",
        "source": "workspace",
        "options": ["rbind", "rw", "nosuid", "nodev"],
    }
]
config.setdefault("annotations", {})["gpucell.bundle.rung"] = sys.argv[1]

with open(path, "w") as f:
    json.dump(config, f, indent=2)
    f.write("\n")
