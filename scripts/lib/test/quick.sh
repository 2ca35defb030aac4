# Part `quick`: what needs no root and no particular kernel.

part_quick() {
  local name
  need_rust
  need_debs libseccomp-dev python3 binutils
  command -v rustfmt >/dev/null || need_debs rustfmt-web
  say "  on this machine, $(rustc --version)"
  cd "$REPO"
  check fmt cargo fmt --check
  check fmt-monitor cargo fmt --check --manifest-path monitor/Cargo.toml
  check fmt-bundles rustfmt --edition 2024 --check bundles/*/*.rs
  check scripts bash -c 'for f in .ci/run scripts/* scripts/lib/* scripts/lib/test/* bundles/*/make; do
      [ -f "$f" ] && [ "$(head -c 11 "$f")" = "#!/bin/bash" -o "${f##*.}" = sh ] || continue
      bash -n "$f" || exit 1
    done'
  check licences scripts/lib/licences
  # No other part builds the fuzz targets.
  check fuzz-lock cargo update --workspace --locked --quiet --manifest-path fuzz/Cargo.toml
  # They are built by `--all attacks` only: that the sources haven't moved away under them is seen here.
  need_debs patch
  check broken-builds-apply bash -c 'for p in tests/broken/*.patch; do
      patch --dry-run -s -p1 <"$p" || { echo "$p"; exit 1; }
    done'
  build_tests || return 0
  if command -v clippy-driver >/dev/null; then
    check clippy sh -c 'cat "$1"; [ ! -s "$1" ]' x "$LINTS"
    check clippy-monitor sh -c 'cd monitor && cargo clippy --locked --quiet -- -D warnings'
  else
    say "  skipped clippy: this toolchain has none"
  fi
  check binary-is-static static_binary "$(programs debug)/gpucell"
  for name in $(program_names 'unit-|spec_' | grep -v -e ^spec_gpu -e ^spec_cdi); do
    tests "$name" timeout -k 10 600 "$(program_path "$name")" --quiet
  done
}

# The runtime is one static file at a fixed address, and can reach none of glibc's functions that
# load its name service at run time: in a static program those crash (see docs/architecture.md).
static_binary() {
  local found
  readelf -lW "$1" | grep -q INTERP && { echo "$1 asks for a dynamic loader"; return 1; }
  readelf -hW "$1" | grep -q 'Type: *EXEC' || { echo "$1 is position-independent"; return 1; }
  # gaih_inet: the inside of glibc's getaddrinfo, which src/sys/nss.rs stands in for.
  found=$(nm "$1" | awk '{ print $3 }' | grep -xE '_*(get(pw|gr)(nam|uid|gid|ent)(_r)?|getgrouplist|initgroups|gaih_inet.*|__nss_lookup_function)') || true
  [ -z "$found" ] || { echo "$1 links functions of the name service:"; echo "$found"; return 1; }
}
