# Part `vm`: the same cell_* programs in the test machine, where cgroup v2 has all controllers and
# systemd is pid 1. The programs are the static ones built here; they find the repository at the
# path that was compiled into them, on a writable layer of the machine's own. The image tests
# (cell_image*) stay out: unpacking does not depend on cgroups, and part of it is a race against umoci,
# which emulation would decide. attack_nvidia_* too: they compile the libraries of their images.

part_vm() {
  local name
  need_root "the test machine's image is made by root"
  build_tests || return 0
  "$REPO/scripts/bundle" hello
  export GPUCELL_VM_NAME=test
  "$REPO/scripts/vm" stop
  "$REPO/scripts/vm" start
  trap '"$REPO/scripts/vm" stop' EXIT
  vm() { "$REPO/scripts/vm" run "$@"; }
  say "  in the test machine: $(vm '. /etc/os-release; echo "$PRETTY_NAME, kernel $(uname -r), cgroup v2 with $(cat /sys/fs/cgroup/cgroup.controllers)"')"
  check pure-v2 vm '[ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ] && ! grep -q "^[^ ]* [^ ]* cgroup " /proc/mounts'
  # The writable layer: the tests keep scratch files below target/tmp.
  vm "mkdir -p /run/layer && mount -t tmpfs layer /run/layer && mkdir -p /run/layer/{up,work} $(printf %q "$REPO") &&
    mount -t overlay overlay -o lowerdir=/mnt/share,upperdir=/run/layer/up,workdir=/run/layer/work $(printf %q "$REPO")"
  # A cargo target folder outside the repository is not in the share: copy the programs.
  case $TARGET_DIR in
  "$REPO"/*) ;;
  *) while read -r _ name; do echo "$name"; done < "$LIST" | grep -E '/cell_' | xargs "$REPO/scripts/vm" put "$(programs debug)/deps"
     "$REPO/scripts/vm" put "$(programs debug)/gpucell" "$(programs debug)" ;;
  esac
  vm '. /mnt/share/scripts/lib/traces.sh; traces > /root/before'
  for name in $(program_names 'cell_|attack_' | grep -v -e ^cell_image -e ^attack_nvidia_); do
    tests "$name" vm "cd $(printf %q "$REPO") && $(program_path "$name") --quiet"
  done
  check nothing-left-behind vm '. /mnt/share/scripts/lib/traces.sh; new=$(traces | comm -13 /root/before -); echo "$new"; [ -z "$new" ]'
  "$REPO/scripts/vm" stop
  trap - EXIT
}
