# The test machine's half of part `gpu`: GPUs as Docker, podman and containerd ask for them, and a CDI
# file of ours that another runtime applies. `scripts/test gpu-vm` runs it alone. What happens in the
# machine is gpu-guest.sh.

part_gpu-vm() {
  local GUEST_PRELUDE=". /mnt/share/scripts/lib/test/gpu-guest.sh; "
  need_root "the test machine's image is made by root"
  need_debs binutils
  guest_engines gpu
  check machine guest prepare
  say "  in the test machine: $("$REPO/scripts/vm" run 'echo "$(docker --version), $(podman --version), containerd $(containerd --version | cut -d" " -f3), $(crun --version | head -n 1)"')"

  # Docker's own way, the hook of NVIDIA's that gpucell knows; and the environment.
  check docker-gpus-all guest "begin docker all --gpus all; saw all first 'max 100000' default 0 1"
  check docker-gpus-device guest "begin docker one --gpus '\"device=1\"'; saw one first 'max 100000' default 0"
  check docker-environment guest "begin docker env -e NVIDIA_VISIBLE_DEVICES=0; saw env first 'max 100000' default 1"
  check docker-gpus-unknown guest "! docker run --rm --network none --runtime gpucell --gpus '\"device=7\"' gpu /bin/true 2>/run/refused; cat /run/refused; grep -q \"GPU 7 doesn't exist\" /run/refused"
  check daemon-reload guest "states 3; systemctl daemon-reload; again env; saw env second 'max 100000' default 1"
  check docker-update guest "docker update --cpus 1 all one; again all; saw all second '100000 100000' default 0 1; again one; saw one second '100000 100000' default 0"
  check docker-removes guest "docker rm -f all one env; states 0"

  # CDI: resolved by the engine, or by gpucell from the annotation.
  check cdi-generate guest "gpucell cdi generate --output /etc/cdi/nvidia.yaml; gpucell cdi list"
  check docker-with-cdi guest "docker_with true"
  check docker-cdi guest "begin docker cdi --device nvidia.com/gpu=0; saw cdi first 'max 100000' all 1"
  check podman-cdi guest "begin podman pod --device nvidia.com/gpu=0; saw pod first 'max 100000' all 1"
  check ctr-cdi guest "begin ctr con --annotation cdi.k8s.io/x=nvidia.com/gpu=1; saw con first - all 0"
  check cdi-daemon-reload guest "systemctl daemon-reload; again con; saw con second - all 0"
  check cdi-docker-update guest "docker update --cpus 1 cdi; again cdi; saw cdi second '100000 100000' all 1"
  check cdi-podman-update guest "podman_ update --cpus 1 pod; again pod; saw pod second '100000 100000' all 1"
  check cdi-removes guest "docker rm -f cdi; podman_ rm -f -t 0 pod; ctr task rm -f con; ctr container rm con"

  # Another runtime with our CDI file.
  local lib=/usr/lib/x86_64-linux-gnu root version
  [ -n "$SAMPLE" ] || check crun-same-one guest same_as_crun 0 "/opt/nvidia-fake/driver$lib/libcuda.so.550.163.01"
  check crun-same-all guest same_as_crun all "/opt/nvidia-fake/driver$lib/libcuda.so.550.163.01"
  # And with NVIDIA's own user space in place of the fake one.
  read -r root version < <("$REPO/scripts/lib/nvidia-debs")
  case $root in
  "$REPO"/*) root=/mnt/share/${root#"$REPO"/} ;;
  *) "$REPO/scripts/vm" put "$root" /opt/nvidia-debs; root=/opt/nvidia-debs/${root##*/} ;;
  esac
  check debian-cdi-generate guest debian_driver "$root" "$version"
  check debian-crun-same guest same_as_crun all "${root#/mnt/share}$lib/nvidia/current/libcuda.so.$version"
  guest_stop
}
