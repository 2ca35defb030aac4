# Part `oci`: the validation programs of opencontainers/runtime-tools, in the test machine. `scripts/test oci DIR`
# runs those of DIR, a copy of that repository in which its `make runtimetest validation-executables` was run;
# nothing here makes one. By hand only; docs/oci.md has what came out.
#
# A program passes when its TAP output has a plan or a test at all and no `not ok`. Those that a runtime cannot
# pass, or that give no verdict, are in tests/oci-suite.list, each with its reason: what is listed must come out
# as it says there, so that the list stays true.

part_oci() {
  local dir=$OCI_DIR copy="$REPO/target/oci-suite" name want log got
  [ -x "$dir/runtimetest" ] || die "$dir has no program 'runtimetest': see scripts/test --help"
  need_root "the test machine's image is made by root"
  need_debs binutils
  # The machine sees this repository's folder.
  rm -rf "$copy"
  mkdir -p "$copy"
  (cd "$dir" && cp --parents runtimetest rootfs-*.tar.gz validation/*/*.t "$copy")
  strip -o "$copy/gpucell" "$(gpucell_program)"
  export GPUCELL_VM_NAME=oci
  "$REPO/scripts/vm" stop
  "$REPO/scripts/vm" start
  trap '"$REPO/scripts/vm" stop' EXIT
  # The programs write beside themselves.
  guest "mkdir -p /run/layer && mount -t tmpfs layer /run/layer && mkdir -p /run/layer/{up,work} /run/oci &&
    mount -t overlay overlay -o lowerdir=/mnt/share/target/oci-suite,upperdir=/run/layer/up,workdir=/run/layer/work /run/oci &&
    cp /run/oci/gpucell /usr/local/bin"
  for name in "$copy"/validation/*/*.t; do
    name=${name##*/} name=${name%.t} log=$LOGS/oci-$name.log
    guest "cd /run/oci && RUNTIME=/usr/local/bin/gpucell timeout 180 validation/$name/$name.t" > "$log" 2>&1 </dev/null || true
    got=$(verdict "$log")
    want=$(awk -v n="$name" '$1 == n { print $2 }' "$REPO/tests/oci-suite.list")
    check "$name" same_verdict "$got" "${want:-passes}" "$log"
  done
  guest_stop
  rm -rf "$copy"
}

# verdict LOG: passes, fails, or none, when there is no test in it.
verdict() {
  if grep -q '^not ok' "$1"; then echo fails
  elif grep -q '^ok' "$1"; then echo passes
  else echo none; fi
}

same_verdict() {
  [ "$1" = "$2" ] || { echo "it $1, and $2 is expected"; cat "$3"; return 1; }
}
