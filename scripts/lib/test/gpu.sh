# Part `gpu`: everything about NVIDIA GPUs, with a driver that isn't there (tests/fakes): a driver root, a
# procfs and nodes of the real numbers, at which the configuration points. What opens such a node finds
# no device behind it (ENXIO), or is refused by the device filter (EPERM).

part_gpu() {
  local name before=$LOGS/gpu-before after=$LOGS/gpu-after
  need_root "the GPU tests make cells"
  build_tests || return 0
  "$REPO/scripts/bundle" hello
  need_debs musl-tools strace crun python3 python3-jsonschema
  say "  on this machine, kernel $(uname -r), $([ -e /proc/driver/nvidia/version ] && echo "beside a real driver" || echo "no NVIDIA driver")"
  traces > "$before"
  cd "$REPO"
  for name in $(program_names 'gpu_|attack_nvidia_|spec_gpu|spec_cdi'); do
    tests "$name" timeout -k 10 900 "$(program_path "$name")" --quiet
  done
  traces > "$after"
  check nothing-left-behind sh -c 'new=$(comm -13 "$1" "$2"); echo "$new"; [ -z "$new" ]' x "$before" "$after"
}
