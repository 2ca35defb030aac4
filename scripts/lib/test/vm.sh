# Part `vm`: the same cell_* and attack_* programs in the test machine, where cgroup v2 has all controllers and
# systemd is pid 1. The programs are the static ones built here. The image tests
# (cell_image*) stay out: unpacking does not depend on cgroups, and part of it is a race against umoci,
# which emulation would decide. attack_nvidia_* too: they compile the libraries of their images. Part `vm-only` has
# those of what only that machine has: systemd, CRIU, sessions of users.
#
# A run of all parts leaves out those whose outcome neither cgroup v2 nor systemd can change: it has run them on
# this machine's kernel, twenty times as fast.

VM_ONLY='cell_(checkpoint|rootless|systemd)$'

part_vm() {
  local not="^cell_image|^attack_nvidia_|^$VM_ONLY"
  [ -z "$SAMPLE" ] || not+='|^attack_|^cell_(contract|hooks|namespaces|paths|process|rootfs|terminal)$'
  in_vm test 'cell_|attack_' "$not"
}

# in_vm MACHINE PROGRAMS NOT: runs the programs of one pattern there, but those of the other.
in_vm() {
  local name filter
  # Under emulation a race's try takes twenty times as long.
  local GUEST_ENV=GPUCELL_ATTACK_TRIES=50
  need_root "the test machine's image is made by root"
  build_tests || return 0
  "$REPO/scripts/bundle" hello
  guest_start "$1" "$2"
  check pure-v2 guest '[ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ] && ! grep -q "^[^ ]* [^ ]* cgroup " /proc/mounts'
  guest '. /mnt/share/scripts/lib/traces.sh; traces > /root/before'
  for name in $(program_names "$2" | grep -Ev "$3"); do
    # Of the comparison with runc what depends on cgroup v2: words and codes do not, and runc is slow there.
    filter=; [ "$name" != cell_contract ] || filter='updates what_a_program'
    tests "$name" guest_program "$name" $filter
  done
  check nothing-left-behind guest '. /mnt/share/scripts/lib/traces.sh; new=$(traces | comm -13 /root/before -); echo "$new"; [ -z "$new" ]'
  guest_stop
}
