# traces: what cells could leave behind on a machine, as sorted lines; sourced. Compare two of them.

traces() {
  {
    cut -d' ' -f5 /proc/self/mountinfo | sed 's/^/mount /'
    # A cgroup of ours has our name in its path; so has every one that the tests and benches ask for.
    find /sys/fs/cgroup -type d -path '*gpucell*' 2>/dev/null | sed 's/^/cgroup /'
    # A process of ours runs the runtime, or the program of a bundle.
    for p in /proc/[0-9]*; do
      exe=$(readlink "$p/exe" 2>/dev/null) || continue
      case $exe in */gpucell | */gpucell' (deleted)' | */bin/hello) echo "process $exe" ;; esac
    done
    for p in /run/gpucell/*; do if [ -e "$p" ]; then echo "state $p"; fi; done
  } | sort
}

# host_line: in one line, what this machine gives the limits to work with.
host_line() {
  local v1 line
  if [ "$(stat -fc %T /sys/fs/cgroup 2>/dev/null)" = cgroup2fs ]; then
    line="cgroup v2 ($(tr ' ' ' ' < /sys/fs/cgroup/cgroup.controllers))"
  else
    v1=$(awk '!/^#/ && $2 != 0 { print $1 }' /proc/cgroups | grep -E '^(memory|cpu|pids|cpuset)$' | paste -sd' ') || true
    line="hybrid cgroups: ${v1:-none} on v1 (fallback)"
    ! grep -q ' cgroup2 ' /proc/mounts || line+="; device filter eBPF"
  fi
  if [ -r /proc/driver/nvidia/version ]; then line+="; NVIDIA driver"; else line+="; no NVIDIA driver"; fi
  say "$line, kernel $(uname -r)"
}
