# Part `kernel`: the cell_* tests as root, on this machine's own kernel and cgroup layout.

part_kernel() {
  local name before=$LOGS/kernel-before after=$LOGS/kernel-after mode
  need_root "the kernel tests make cells"
  build_tests || return 0
  "$REPO/scripts/bundle" hello
  need_debs umoci skopeo docker-registry strace runc
  mode="hybrid or v1 cgroups: $(awk '!/^#/ && $2 != 0 { print $1 }' /proc/cgroups | paste -sd' ') on v1"
  [ "$(stat -fc %T /sys/fs/cgroup)" != cgroup2fs ] || mode="pure cgroup v2: $(</sys/fs/cgroup/cgroup.controllers)"
  say "  on this machine, kernel $(uname -r), $mode"
  traces > "$before"
  cd "$REPO"
  for name in $(program_names cell_); do
    tests "$name" timeout -k 10 900 "$(program_path "$name")" --quiet
  done
  check miniconda-image env GPUCELL="$(programs debug)/gpucell" scripts/lib/check-miniconda-image
  traces > "$after"
  check nothing-left-behind sh -c 'new=$(comm -13 "$1" "$2"); echo "$new"; [ -z "$new" ]' x "$before" "$after"
}
