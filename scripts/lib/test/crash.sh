# Part `crash`: gpucell and its children are killed at their system calls, and nothing may be left behind: on this
# machine, with cgroupfs, of four kinds of cell. A sample of the points; `--all` takes every one. `crash-vm` does
# the same in the test machine.

part_crash() {
  need_root "cells are made and their makers killed"
  build_tests || return 0
  "$REPO/scripts/bundle" hello
  local points=
  [ -z "$ALL" ] || points=GPUCELL_CRASH_POINTS=all
  cd "$REPO"
  tests crash_cells env $points timeout -k 10 3600 "$(program_path crash_cells)" --quiet --nocapture
  kills crash_cells
}

# kills NAME: how many there were, from the test's own words.
kills() {
  say "  $1: $(awk '$4 == "kills" { n += $3; calls += $6; late += $8 } END { printf "%d kills, of %d calls traced; %d left something to undo", n, calls, late }' "$LOGS/$PART-$1.log")"
}
