# In the test machine: what the engines' checks share; sourced for each check by engines.sh. A check is a
# function that fails at its first wrong answer, and says which.
set -euo pipefail

GPUCELL=/usr/local/bin/gpucell
WORK=/run/engines
BASE=docker.io/library/base:latest

. /mnt/share/scripts/lib/traces.sh
. /mnt/share/scripts/lib/test/engines-docker.sh
. /mnt/share/scripts/lib/test/engines-containerd.sh
. /mnt/share/scripts/lib/test/engines-podman.sh

# is WANTED COMMAND...: the command's output is that, and it succeeds.
is() {
  local wanted=$1 got rc=0; shift
  got=$("$@" 2>&1) || rc=$?
  [ "$rc" = 0 ] && [ "$got" = "$wanted" ] && return
  printf 'wrong: %s\n  gives %s\n  code  %s\n  wanted %s\n' "$*" "$got" "$rc" "$wanted"
  return 1
}

# ends CODE TEXT COMMAND...: it ends with that exit code and says something like TEXT (a pattern of grep).
ends() {
  local code=$1 text=$2 got rc=0; shift 2
  got=$("$@" 2>&1) || rc=$?
  [ "$rc" = "$code" ] && grep -q -- "$text" <<<"$got" && return
  printf 'wrong: %s\n  gives %s\n  code  %s\n  wanted %s, with %s\n' "$*" "$got" "$rc" "$code" "$text"
  return 1
}

# none COMMAND...: it prints nothing.
none() {
  local got; got=$("$@" 2>/dev/null) || true
  [ -z "$got" ] || { printf 'wrong: %s\n  gives %s\n  wanted nothing\n' "$*" "$got"; return 1; }
}

# until SECONDS COMMAND...: it succeeds by then.
until_() {
  local end=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || { echo "in time, this did not succeed: $*"; "$@"; return 1; }
    sleep 0.2
  done
}

# says TEXT COMMAND...: that is somewhere in its output.
says() { local text=$1; shift; "$@" | grep -q -- "$text"; }

# terminal COMMAND...: runs it on a terminal of 40 rows and 120 columns; its output, without what a terminal adds.
terminal() { script -qefc "stty rows 40 cols 120; $(printf '%q ' "$@")" /dev/null </dev/null | tr -d '\r' | sed 's/^\^@//'; }

# prepare: a GPU driver that isn't there (tests/fakes), and an image with a shell, busybox, Python at Miniconda's place, and useradd.
prepare() {
  local r=$WORK/base f
  mkdir -p "$r"/{dev,etc,opt/conda/bin,proc,root,run,sys,tmp,home,usr/{bin,sbin,lib,lib64},var}
  chmod 1777 "$r/tmp"
  for f in bin sbin lib lib64; do ln -s "usr/$f" "$r/$f"; done
  cp /bin/busybox "$r/bin"
  for f in $(/bin/busybox --list); do [ -e "$r/bin/$f" ] || ln -s busybox "$r/bin/$f"; done
  program /bin/bash "$r"
  program /usr/sbin/useradd "$r"
  f=$(readlink -f /usr/bin/python3)
  program "$f" "$r"
  mv "$r$f" "$r/opt/conda/bin/python"
  mkdir -p "$r/opt/conda/lib"
  cp -a "/usr/lib/${f##*/}" "$r/opt/conda/lib/"
  rm -rf "$r/opt/conda/lib/${f##*/}"/{test,idlelib,__pycache__,ensurepip,pydoc_data}
  printf 'root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\nmail:x:8:8::/:/bin/sh\n' > "$r/etc/passwd"
  printf 'root:x:0:\nnogroup:x:65534:\nmail:x:8:\nvideo:x:44:mail\n' > "$r/etc/group"
  : > "$r/etc/shadow"
  cp /etc/login.defs "$r/etc"
  tar -C "$r" -cf "$WORK/base.tar" .
  mkdir -p "$WORK/seen"
  fake-driver /opt/nvidia-fake 2
  mkdir -p /etc/gpucell
  ln -s /opt/nvidia-fake/config.toml /etc/gpucell/config.toml
  "$GPUCELL" --version
}

# program FILE ROOT: a program with its libraries.
program() {
  local f
  for f in "$1" $(ldd "$1" | grep -o '/[^ ]*'); do
    mkdir -p "$2$(dirname "$f")"
    cp -L "$f" "$2$f"
  done
}

# states DIR: what cells have a state below it.
states() { find "$@" -name state.json 2>/dev/null; }

# groups_of NAME: the groups whose path has it.
groups_of() { find /sys/fs/cgroup -type d -path "*$1*"; }
