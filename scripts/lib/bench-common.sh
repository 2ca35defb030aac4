# What scripts/bench and scripts/bench kernel share; sourced.

TOOLS=$TARGET_DIR/bench

# enter_view SCRIPT ARG...: runs the script again in a private mount namespace where /sys/fs/cgroup is
# the cgroup2 file system alone, as on a current distribution. What is mounted there is the host's own
# v2 hierarchy, moved: a new `mount -t cgroup2` with options would change flags for the whole machine.
enter_view() {
  [ -z "${GPUCELL_BENCH_VIEW:-}" ] || return 0
  local v2 subtree
  v2=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
  [ -n "$v2" ] || die "this machine has no cgroup2 file system mounted"
  # A runtime may switch controllers on for the root's children; leave_view puts that back.
  subtree=$(<"$v2/cgroup.subtree_control")
  export GPUCELL_BENCH_VIEW=1 GPUCELL_BENCH_SUBTREE=$subtree
  exec unshare -m --propagation private bash -ec '
    v2=$1; shift
    if [ "$v2" != /sys/fs/cgroup ]; then
      mount -t tmpfs -o mode=755 tmpfs /mnt
      mkdir /mnt/cgroup2
      mount --bind "$v2" /mnt/cgroup2
      umount -R -l /sys/fs/cgroup
      mount --move /mnt/cgroup2 /sys/fs/cgroup
      umount -l /mnt
    fi
    mount -t tmpfs -o mode=755 tmpfs /run
    exec "$@"' x "$v2" "$@"
}

leave_view() {
  local c now
  rmdir /sys/fs/cgroup/gpucell-test-bench 2>/dev/null || true
  now=$(</sys/fs/cgroup/cgroup.subtree_control)
  for c in $now; do
    case " $GPUCELL_BENCH_SUBTREE " in *" $c "*) ;; *) echo "-$c" > /sys/fs/cgroup/cgroup.subtree_control || true ;; esac
  done
}

# The measuring programs: rustc and cc alone, again only when a source has changed.
build_bench_tools() {
  local src=$REPO/benches/process key flags
  need_rust
  "$REPO/scripts/bundle" hello
  mkdir -p "$TOOLS"
  key=$(rustc --version; cat "$src"/* | sha256sum)
  [ "$(cat "$TOOLS/made-from" 2>/dev/null)" != "$key" ] || return 0
  flags=(--edition 2024 -C opt-level=2 -C panic=abort -C strip=symbols -C relocation-model=static -C target-feature=+crt-static)
  rustc "${flags[@]}" -o "$TOOLS/measure" "$src/measure.rs"
  rustc "${flags[@]}" -C link-arg=-nostartfiles -C link-arg=-nostdlib -o "$TOOLS/usage" "$src/usage.rs"
  cc -O2 -shared -fPIC -o "$TOOLS/memlock.so" "$src/memlock.c"
  printf '%s\n' "$key" > "$TOOLS/made-from"
}

# runtime_path NAME: where it is; not found is no error, it is then not compared.
runtime_path() {
  if [ "$1" = gpucell ]; then
    [ -n "${GPUCELL:-}" ] && { say "$GPUCELL"; return; }
    [ -x "$(programs release)/gpucell" ] || (cd "$REPO" && cargo build --release --locked --quiet) >&2
    # As it is once installed: a copy. The linker's own file lies in small pieces in the page cache, and costs a cell
    # a twelfth more in page faults.
    install -C -m 755 "$(programs release)/gpucell" "$TOOLS/gpucell" && say "$TOOLS/gpucell"
  else
    command -v "$1"
  fi | tr -d '\n'
  [ "${PIPESTATUS[0]}" = 0 ]
}

# crun 1.8.1 raises its locked-memory limit before it loads a device program, and gives up where that
# is not allowed. Then, and only then, it gets a preload that tells it "done"; what that costs it is
# measured and said.
env_of_crun() {
  CRUN_NOTE= CRUN_PRELOAD= MEASURE_ENV=()
  local crun caps plain loaded
  crun=$(command -v crun) || return 0
  [ "$(ulimit -H -l)" != unlimited ] || return 0
  caps=$(sed -n 's/^CapEff:\s*//p' /proc/self/status)
  [ $((0x$caps >> 24 & 1)) = 0 ] || return 0 # CAP_SYS_RESOURCE
  CRUN_PRELOAD=$TOOLS/memlock.so
  MEASURE_ENV=(--env "crun:LD_PRELOAD=$CRUN_PRELOAD")
  read -r plain loaded < <("$TOOLS/measure" floor 60 "$crun --version" "env LD_PRELOAD=$CRUN_PRELOAD $crun --version" "env $crun --version" |
    awk '{ t[NR] = $1 } END { print t[1], t[2] - t[3] }')
  CRUN_NOTE="crun runs with a preload (benches/process/memlock.c), for no process here may raise its locked-memory limit; it costs crun $(printf '%.0f' "$loaded") us of the $(printf '%.0f' "$plain") us that crun --version takes"
}
