# Part `vm-only`: the tests of what only the test machine has: systemd as pid 1, CRIU, sessions of users with delegated
# groups.

part_vm-only() {
  . "$REPO/scripts/lib/test/vm.sh"
  in_vm only "$VM_ONLY" '^$'
}
