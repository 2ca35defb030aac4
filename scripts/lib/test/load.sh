# Part `load`: many cells in a row and at once, on this machine; in the test machine, for cgroup v2 and its device
# programs, fewer in a row.

part_load() {
  need_root "cells are made"
  build_tests || return 0
  "$REPO/scripts/bundle" hello
  cd "$REPO"
  tests load_cells timeout -k 10 3600 "$(program_path load_cells)" --quiet --nocapture
  figures load_cells
  guest_start load load_
  GPUCELL_VM_TIMEOUT=1200 GUEST_ENV="GPUCELL_LOAD_CELLS=200" tests load_cells-vm guest_program load_cells --nocapture
  figures load_cells-vm
  guest_stop
}

# figures NAME: what the test measured.
figures() { sed -n 's/^create: /  create: /p' "$LOGS/load-$1.log"; }
