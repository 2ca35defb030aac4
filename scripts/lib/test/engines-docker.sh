# In the test machine: Docker with gpucell; sourced by engines-guest.sh. MODE and the runtime's flag are kept
# in a file from one check to the next.

docker_run() { docker run $(cat $WORK/docker-flag) "$@"; }

# docker_with named|default systemd|cgroupfs: dockerd with gpucell, by name or as what it takes by itself.
docker_with() {
  local default=runc flag="--runtime gpucell"
  [ "$1" = named ] || default=gpucell flag=
  echo "$flag" > $WORK/docker-flag
  cat > /etc/docker/daemon.json <<J
{ "exec-opts": ["native.cgroupdriver=$2"], "storage-driver": "overlay2", "default-runtime": "$default",
  "default-shm-size": "32M", "runtimes": { "gpucell": { "path": "$GPUCELL" } }${3:+, $3} }
J
  systemctl reset-failed docker
  systemctl restart docker
  is "$default $2" docker info -f '{{.DefaultRuntime}} {{.CgroupDriver}}'
  docker image inspect base >/dev/null 2>&1 || docker import $WORK/base.tar base
  # It is gpucell that runs there: no other runtime has a state of this name.
  docker_run -d --name who base sleep 100
  [ -n "$(states /run/docker/runtime-runc/moby "/run/docker/runtime-$default/moby")" ] || { find /run/docker -path '*moby*'; return 1; }
  docker rm -f who
}

docker_run_() { docker_run --rm --network none "$@"; }

docker_run() { docker run $(cat $WORK/docker-flag) "$@"; }
