# Shared by the scripts of this folder; sourced, never run.
#
# Owns: where things are, messages, Debian packages, and the toolchain. Each script that sources
# this has set -euo pipefail first.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
PROG=${0##*/}
export LC_ALL=C.UTF-8

say() { printf '%s\n' "$*"; }
note() { printf '%s: %s\n' "$PROG" "$*" >&2; }
die() { note "$*"; exit 1; }
need_root() { [ "$(id -u)" = 0 ] || die "run as root: $1"; }

# Seconds since an $EPOCHREALTIME, as 12.3
since() { local us=$((${EPOCHREALTIME/./} - ${1/./})); printf '%d.%d' $((us / 1000000)) $((us / 100000 % 10)); }

# Where cargo puts its output, and the folder of one profile's programs in it. A target is always
# named (.cargo/config.toml), so there is a folder for it in between.
TARGET_DIR=${CARGO_TARGET_DIR:-$REPO/target}
case $TARGET_DIR in /*) ;; *) TARGET_DIR=$REPO/$TARGET_DIR ;; esac
programs() { printf '%s/%s-unknown-linux-gnu/%s' "$TARGET_DIR" "$(uname -m)" "$1"; }

# One apt-get at a time, whoever asks; no question, nothing recommended.
apt_quiet() {
  DEBIAN_FRONTEND=noninteractive flock "${TMPDIR:-/tmp}/gpucell-apt.lock" apt-get -q -y \
    -o DPkg::Lock::Timeout=300 -o Acquire::Retries=2 -o Acquire::http::Timeout=30 -o Dpkg::Use-Pty=0 "$@"
}

# need_debs PACKAGE...: installs the Debian packages that are missing.
need_debs() {
  local p missing=() log
  for p in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || die "these Debian packages are needed and there is no apt-get here: ${missing[*]}"
  [ "$(id -u)" = 0 ] || die "missing Debian packages: run as root, or: apt-get install ${missing[*]}"
  note "installing: ${missing[*]}"
  log=$(mktemp)
  # The package lists may be old or absent; fetch them once and try again. A source that does not
  # answer is no reason to stop: what counts is that the packages can be had.
  if ! apt_quiet install --no-install-recommends "${missing[@]}" >"$log" 2>&1; then
    apt_quiet update >>"$log" 2>&1 || true
    apt_quiet install --no-install-recommends "${missing[@]}" >>"$log" 2>&1 || {
      tail -n 20 "$log" >&2; rm -f "$log"
      die "apt-get could not install: ${missing[*]}"
    }
  fi
  rm -f "$log"
  # One may have pushed another of them out, that was there in a version of another release.
  for p in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || apt_quiet install --no-install-recommends "$p" >&2
  done
}

# version_ge A B: is version A at least B?
version_ge() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# The oldest Rust that builds this package, from Cargo.toml.
rust_needed() { sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$REPO/Cargo.toml"; }

# need_rust: a cargo and rustc that are new enough and a C linker, from Debian where missing. Debian
# 12 and 13 ship a current toolchain under the names cargo-web and rustc-web.
need_rust() {
  local want have
  want=$(rust_needed)
  have=$(rustc --version 2>/dev/null | cut -d' ' -f2) || true
  if [ -z "$have" ] || ! version_ge "$have" "$want" || ! command -v cargo >/dev/null; then
    command -v apt-get >/dev/null || die "Rust $want or newer is needed: https://rustup.rs"
    need_debs rustc-web cargo-web
    hash -r
    have=$(rustc --version 2>/dev/null | cut -d' ' -f2) || true
    version_ge "${have:-0}" "$want" || die "Rust $want or newer is needed, Debian's rustc-web here is ${have:-missing}: install from https://rustup.rs"
  fi
  command -v cc >/dev/null && [ -e /usr/include/stdio.h ] || need_debs gcc libc6-dev
}

# The runtime that scripts use: $GPUCELL, else the newest one built here, else it is built.
gpucell_program() {
  local release debug
  release=$(programs release)/gpucell debug=$(programs debug)/gpucell
  if [ -n "${GPUCELL:-}" ]; then
    [ -x "$GPUCELL" ] || die "GPUCELL is $GPUCELL, which is no program"
    say "$GPUCELL"
  elif [ -x "$release" ] && [ ! "$debug" -nt "$release" ]; then say "$release"
  elif [ -x "$debug" ]; then say "$debug"
  else
    need_rust >&2
    (cd "$REPO" && cargo build --release --locked --quiet) >&2
    say "$release"
  fi
}

# fake_driver_program: the program that lays down a driver that isn't there (tests/fakes), static.
fake_driver_program() {
  local out=$TARGET_DIR/fake-driver src=$REPO/tests/fakes
  if [ ! "$out" -nt "$src/driver.rs" ] || [ ! "$out" -nt "$src/fake_driver.rs" ]; then
    need_rust >&2
    mkdir -p "$TARGET_DIR"
    rustc --edition 2024 -C target-feature=+crt-static -o "$out.$$" "$src/fake_driver.rs" >&2
    mv "$out.$$" "$out"
  fi
  say "$out"
}
