# Part `engines`: Docker, containerd, podman and buildah with gpucell as their runtime, in the test machine:
# by name and as dockerd's default, with both cgroup drivers. What happens in the machine is in
# engines-guest.sh and engines-{docker,containerd,podman}.sh. `--all` takes every mode of Docker's with each
# cgroup driver; without it, each mode with one.

part_engines() {
  local GUEST_PRELUDE=". /mnt/share/scripts/lib/test/engines-guest.sh; "
  local modes=(named:systemd default:cgroupfs) mode check
  local -x GPUCELL_VM_CPUS=2 # an update moves a cell from one processor to both
  [ -z "$ALL" ] || modes=(named:systemd named:cgroupfs default:systemd default:cgroupfs)
  need_root "the test machine's image is made by root"
  need_debs binutils
  guest_engines engines
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
  check docker-checkpoint guest docker_checkpoint
  check docker-userns-remap guest docker_remap
  check ctr-prepare guest ctr_prepare
  for check in run exec pause metrics kill crash; do check "ctr-$check" guest "ctr_$check"; done
  check ctr-nothing-left guest ctr_nothing_left
  for mode in systemd cgroupfs; do
    for check in run terminal exec limits checkpoint pause stop pod play health crash; do
      check "podman-$mode-$check" guest "MANAGER=$mode; podman_$check"
    done
    check "podman-$mode-nothing-left" guest "MANAGER=$mode; podman_nothing_left"
  done
  for check in rootless_run podman_exec rootless_limits podman_pause podman_stop podman_pod rootless_keep_id podman_crash; do
    check "rootless-${check#*_}" guest "MANAGER=rootless; $check"
  done
  check "rootless-nothing-left" guest "MANAGER=rootless; podman_nothing_left"
  check buildah-bud guest buildah_bud
  guest_stop
}
