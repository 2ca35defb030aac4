# Part `engines`: Docker, containerd, podman and buildah with gpucell as their runtime, in the test machine:
# by name and as dockerd's default, with both cgroup drivers. What happens in the machine is in
# engines-guest.sh and engines-{docker,containerd,podman}.sh. `--all` takes every mode of Docker's with each
# cgroup driver; without it, each mode with one.

part_engines() {
  local dir modes=(named:systemd default:cgroupfs) mode check
  [ -z "$ALL" ] || modes=(named:systemd named:cgroupfs default:systemd default:cgroupfs)
  need_root "the test machine's image is made by root"
  need_debs binutils
  dir=$(mktemp -d "${TMPDIR:-/tmp}/gpucell-engines-XXXXXX")
  # Emulation pays for each byte that is read: without what only a debugger needs.
  strip -o "$dir/gpucell" "$(gpucell_program)"
  cp "$(fake_driver_program)" "$dir/fake-driver"
  export GPUCELL_VM_NAME=engines
  "$REPO/scripts/vm" stop
  "$REPO/scripts/vm" start
  trap '"$REPO/scripts/vm" stop' EXIT
  "$REPO/scripts/vm" put "$dir/gpucell" "$dir/fake-driver" /usr/local/bin
  rm -r "$dir"
  guest() { "$REPO/scripts/vm" run ". /mnt/share/scripts/lib/test/engines-guest.sh; $*"; }
  check machine guest prepare
  say "  in the test machine: $("$REPO/scripts/vm" run 'echo "$(docker --version), $(docker-compose version --short), $(podman --version), containerd $(containerd --version | cut -d" " -f3), $(buildah --version | cut -d" " -f1-3)"')"
  for mode in "${modes[@]}"; do
    check "docker-$mode" guest "docker_with ${mode/:/ }"
    for check in run terminal exec logs stop restart limits hardened joined volumes health pause crash; do
      check "docker-$mode-$check" guest "docker_$check"
    done
    check "docker-$mode-nothing-left" guest docker_nothing_left
  done
  check docker-build guest docker_build
  check docker-compose guest docker_compose
  check docker-userns-remap guest docker_remap
  check ctr-prepare guest ctr_prepare
  for check in run exec pause metrics kill crash; do check "ctr-$check" guest "ctr_$check"; done
  check ctr-nothing-left guest ctr_nothing_left
  for mode in systemd cgroupfs; do
    for check in run terminal exec limits pause stop pod play keep_id health crash; do
      check "podman-$mode-$check" guest "MANAGER=$mode; podman_$check"
    done
    check "podman-$mode-nothing-left" guest "MANAGER=$mode; podman_nothing_left"
  done
  check buildah-bud guest buildah_bud
  "$REPO/scripts/vm" stop
  trap - EXIT
}
