# Part `oci`: the validation programs of opencontainers/runtime-tools, in the test machine. `scripts/test oci DIR`
# runs those of DIR, a copy of that repository in which its `make runtimetest validation-executables` was run;
# nothing here makes one. By hand only; docs/oci.md has what came out.
#
# A program passes when it ends with 0 and writes no `not ok`. Some write no verdict but a YAML: then when that holds
# no error (in that of an `ok` it is the one which the test asks for). Those that a runtime cannot pass are in
# tests/oci-suite.list, each with its reason: these must fail, so that the list stays true.

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
  guest_begin oci
  # The programs write beside themselves.
  guest "mkdir -p /run/layer && mount -t tmpfs layer /run/layer && mkdir -p /run/layer/{up,work} /run/oci &&
    mount -t overlay overlay -o lowerdir=/mnt/share/target/oci-suite,upperdir=/run/layer/up,workdir=/run/layer/work /run/oci &&
    cp /run/oci/gpucell /usr/local/bin"
  for name in "$copy"/validation/*/*.t; do
    name=${name##*/} name=${name%.t} log=$LOGS/suite-$name.log
    want=passes
    ! grep -q "^$name " "$REPO/tests/oci-suite.list" || want=fails
    # Three times: poststart looks at the order of two lines that are written at the same time.
    for _ in 1 2 3; do
      guest "cd /run/oci && RUNTIME=/usr/local/bin/gpucell timeout 180 validation/$name/$name.t" > "$log" 2>&1 </dev/null || echo "ends with $?" >> "$log"
      [ "$want" = passes ] && ! comes_out passes "$log" >/dev/null || break
    done
    check "$name" comes_out "$want" "$log"
  done
  guest_stop
  rm -rf "$copy"
}

# comes_out WANTED LOG: what a program wrote says that it passes or fails, as wanted.
comes_out() {
  local got=passes
  if grep -qE '^(not )?ok' "$2"; then
    ! grep -qE '^not ok|^ends with' "$2" || got=fails
  else
    ! grep -qE '^ends with|"error": "[^"]' "$2" || got=fails
  fi
  [ "$got" = "$1" ] || { echo "it $got"; cat "$2"; return 1; }
}
