# Part `deb`, by name only: it builds a release and may have to build cargo-deb. The package is installed in the
# test machine, used as the package's users would, and removed; nothing of it stays.

part_deb() {
  local deb
  need_root "the test machine's image is made by root"
  check build "$REPO/scripts/deb"
  deb=$(tail -n 1 "$LOGS/deb-build.log")
  [ -f "$deb" ] || return 0
  "$REPO/scripts/bundle" hello
  guest_begin deb
  "$REPO/scripts/vm" put "$deb" "$REPO/bundles/hello" /root
  deb=/root/${deb##*/}
  # All that a package or a set-up could have left. dpkg's own books change; /run is the cells'.
  guest 'list() { find /etc /usr /opt /var/lib -path /var/lib/dpkg -prune -o -path "/var/lib/docker*" -prune -o \
      -path "/var/lib/containerd*" -prune -o -print 2>/dev/null | sort; }; declare -f list > /root/list; list > /root/before'
  # The machine's dpkg unpacks no manuals and documentation: its list of the package has them.
  check install guest "dpkg -i $deb && gpucell --version && gpucell completions bash | cmp - /usr/share/bash-completion/completions/gpucell &&
    for f in man/man1/gpucell-setup.1.gz man/man1/gpucell.1.gz doc/gpucell/copyright doc/gpucell/docs/oci.md; do
      dpkg -L gpucell | grep -qx /usr/share/\$f || exit 1
    done"
  check monitor guest '/usr/libexec/gpucell/gpucell-monitor 2>&1 | grep libnvidia-ml'
  check run guest 'cd /root/hello && gpucell exec ./ | grep -q "hello from a cell"'
  check docker guest 'gpucell setup docker && systemctl restart docker && cd /root/hello/rootfs && tar -c . | docker import - hello &&
    docker run --rm --runtime gpucell --network none hello /bin/hello print "docker hello" | grep -q "docker hello" &&
    gpucell setup docker --remove && systemctl restart docker && ! docker info -f "{{json .Runtimes}}" | grep -q gpucell'
  check remove guest 'dpkg -r gpucell && ! command -v gpucell && . /root/list && new=$(list | comm -13 /root/before -) && echo "$new" && [ -z "$new" ]'
  guest_stop
}
