# The test machine as the parts of scripts/test use it; sourced. Programs run in it at the paths they were
# built at: the repository is there under its own path, on a writable layer of the machine's own.

# guest_begin NAME: starts it afresh, until guest_stop or the script's end.
guest_begin() {
  export GPUCELL_VM_NAME=$1
  "$REPO/scripts/vm" stop
  "$REPO/scripts/vm" start
  trap '"$REPO/scripts/vm" stop' EXIT
}

# guest_gpucell PROGRAM DIR: puts that build of gpucell there, by that name. Emulation pays for each byte that is
# read: without what only a debugger needs.
guest_gpucell() {
  local dir
  dir=$(mktemp -d "${TMPDIR:-/tmp}/gpucell-guest-XXXXXX")
  strip -o "$dir/gpucell" "$1"
  "$REPO/scripts/vm" put "$dir/gpucell" "$2"
  rm -r "$dir"
}

# guest_engines NAME: the same, with gpucell and the driver that isn't there (tests/fakes) in /usr/local/bin.
guest_engines() {
  guest_begin "$1"
  guest_gpucell "$(gpucell_program)" /usr/local/bin
  "$REPO/scripts/vm" put "$(fake_driver_program)" /usr/local/bin
}

# guest_start NAME PROGRAMS: the same, for test programs; PROGRAMS is a pattern of those it is to run.
guest_start() {
  guest_begin "$1"
  say "  in the test machine: $(guest '. /etc/os-release; echo "$PRETTY_NAME, kernel $(uname -r), cgroup v2 with $(cat /sys/fs/cgroup/cgroup.controllers)"')"
  # The tests keep scratch files below target/tmp.
  guest "mkdir -p /run/layer && mount -t tmpfs layer /run/layer && mkdir -p /run/layer/{up,work} $(printf %q "$REPO") &&
    mount -t overlay overlay -o lowerdir=/mnt/share,upperdir=/run/layer/up,workdir=/run/layer/work $(printf %q "$REPO")"
  # A cargo target folder outside the repository is not in the share: copy the programs.
  case $TARGET_DIR in
  "$REPO"/*) ;;
  *) local name files=()
     for name in $(program_names "$2"); do files+=("$(program_path "$name")"); done
     "$REPO/scripts/vm" put "${files[@]}" "$(programs debug)/deps"
     "$REPO/scripts/vm" put "$(programs debug)/gpucell" "$(programs debug)" ;;
  esac
  # gpucell is run from memory: a program in the share is read a page at a time. (A changed time copies it up.)
  guest "touch $(printf %q "$(programs debug)/gpucell")"
}

# guest CMD: a shell command in it, after GUEST_PRELUDE, which a part may set as a variable of its own.
guest() { "$REPO/scripts/vm" run "${GUEST_PRELUDE-}$*"; }

# guest_program NAME [ARGUMENT...]: a test program in it, with GUEST_ENV (`NAME=VALUE...`) as its environment.
guest_program() {
  local path; path=$(program_path "$1"); shift
  guest "cd $(printf %q "$REPO") && ${GUEST_ENV-} $path --quiet $*"
}

guest_stop() { "$REPO/scripts/vm" stop; trap - EXIT; }
