# Part `attacks`: the attack_* programs, each test a published attack or a race. Those on the GPU's files
# (attack_nvidia_*) are of part `gpu`, the image's layers of cell_image_hostile. --all: each guard
# of a list is taken out (scripts/lib/broken-builds), and the tests must notice.

part_attacks() {
  local name before=$LOGS/attacks-before after=$LOGS/attacks-after
  need_root "the attacks are made on cells"
  build_tests || return 0
  "$REPO/scripts/bundle" hello
  local tries=${GPUCELL_ATTACK_TRIES:-$([ -z "$SAMPLE" ] && echo 1000 || echo 100)}
  say "  on this machine, kernel $(uname -r), $tries tries a race"
  traces > "$before"
  cd "$REPO"
  for name in $(program_names attack_ | grep -v ^attack_nvidia_); do
    tests "$name" env GPUCELL_ATTACK_TRIES="$tries" timeout -k 10 1800 "$(program_path "$name")" --quiet
  done
  traces > "$after"
  check nothing-left-behind sh -c 'new=$(comm -13 "$1" "$2"); echo "$new"; [ -z "$new" ]' x "$before" "$after"
  [ -z "$ALL" ] || check broken-builds-are-noticed scripts/lib/broken-builds
}
