# Part `crash`: gpucell and its children are killed at their system calls, and nothing may be left behind:
# on this machine (cgroupfs), and in the test machine (systemd). A sample of the points; `--all` takes every
# one here of all cells, and there of those whose groups differ by the driver, and a sample there with cgroupfs.

part_crash() {
  need_root "cells are made and their makers killed"
  build_tests || return 0
  "$REPO/scripts/bundle" hello
  local points= some='GPUCELL_CRASH_POINTS=3 GPUCELL_CRASH_KINDS=docker'
  local series=("systemd $some") one driver
  [ -z "$ALL" ] || { points=GPUCELL_CRASH_POINTS=all
    series=("systemd $points GPUCELL_CRASH_KINDS=docker,user,gpu" "cgroupfs $some"); }
  cd "$REPO"
  tests crash_cells env $points timeout -k 10 3600 "$(program_path crash_cells)" --quiet --nocapture
  kills crash_cells
  guest_start crash crash_
  # A release that is named takes the dev build's place there: emulation runs it twice as fast.
  [ -z "${GPUCELL:-}" ] || guest_gpucell "$GPUCELL" "$(programs debug)"
  # On one processor: each stop of a traced process would wake another one, which emulation makes dear.
  for one in "${series[@]}"; do
    driver=${one%% *}
    tests "crash_cells-vm-$driver" env GPUCELL_VM_TIMEOUT=28800 "$REPO/scripts/vm" run \
      "cd $(printf %q "$REPO") && ${one#* } GPUCELL_CRASH_DRIVER=$driver taskset -c 0 $(program_path crash_cells) --quiet --nocapture"
    kills "crash_cells-vm-$driver"
  done
  guest_stop
}

# kills NAME: how many there were, from the test's own words.
kills() {
  say "  $1: $(awk '$4 == "kills" { n += $3; calls += $6; late += $8 } END { printf "%d kills, of %d calls traced; %d left something to undo", n, calls, late }' "$LOGS/crash-$1.log")"
}
