# The test machine's half of part `crash`, with systemd: a sample of the points of one kind of cell; `--all` takes
# every one of those kinds whose groups differ by the driver, and a sample with cgroupfs.

part_crash-vm() {
  . "$REPO/scripts/lib/test/crash.sh"
  need_root "the test machine's image is made by root"
  build_tests || return 0
  "$REPO/scripts/bundle" hello
  local some='GPUCELL_CRASH_POINTS=3 GPUCELL_CRASH_KINDS=docker' one driver
  local series=("systemd $some")
  [ -z "$ALL" ] || series=("systemd GPUCELL_CRASH_POINTS=all GPUCELL_CRASH_KINDS=docker,user,gpu" "cgroupfs $some")
  guest_start crash crash_
  # A release that is named takes the dev build's place there: emulation runs it twice as fast.
  [ -z "${GPUCELL:-}" ] || guest_gpucell "$GPUCELL" "$(programs debug)"
  for one in "${series[@]}"; do
    driver=${one%% *}
    tests "crash_cells-$driver" env GPUCELL_VM_TIMEOUT=28800 "$REPO/scripts/vm" run \
      "cd $(printf %q "$REPO") && ${one#* } GPUCELL_CRASH_DRIVER=$driver $(program_path crash_cells) --quiet --nocapture"
    kills "crash_cells-$driver"
  done
  guest_stop
}
