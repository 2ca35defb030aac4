# Part `vm-only`: the tests of what only the test machine has: systemd as pid 1, CRIU, sessions of users with delegated
# groups.

part_vm-only() {
  . "$REPO/scripts/lib/test/vm.sh"
  build_tests || return 0
  in_vm only $(program_names cell_ | grep -E "$VM_ONLY")
}
