# Part `load`: many cells in a row and at once, on this machine; fewer in the test machine, for cgroup v2 and
# its device programs. A run of every part, as each change has, takes a sample, unless by `--all`.

part_load() {
  local cells=10000 alive=1000
  if [ -n "$EVERY" ] && [ -z "$ALL" ]; then cells=1000 alive=200; fi
  need_root "cells are made"
  build_tests || return 0
  "$REPO/scripts/bundle" hello
  cd "$REPO"
  tests load_cells env GPUCELL_LOAD_CELLS=$cells GPUCELL_LOAD_ALIVE=$alive timeout -k 10 3600 "$(program_path load_cells)" --quiet --nocapture
  figures load_cells
  guest_start load load_
  GUEST_ENV="GPUCELL_LOAD_CELLS=200 GPUCELL_LOAD_ALIVE=100" tests load_cells-vm guest_program load_cells --nocapture
  figures load_cells-vm
  guest_stop
}

# figures NAME: what the test measured.
figures() { sed -n 's/^create: /  create: /p' "$LOGS/load-$1.log"; }
