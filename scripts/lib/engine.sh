# Part of scripts/servers: which engine, and what it needs.
# shellcheck shell=bash disable=SC2154

# Runs a function alone among all calls of this directory's scripts/servers. The function must not leave a process behind:
# it would inherit the lock.
locked() {
  mkdir -p "$state"
  (flock 9 && "$@") 9>"$state/.lock"
}

# [KIND]: sets `engine`; says which and why unless the caller decided.
choose_engine() {
  local why
  if [ "${1:-}" = prometheus ]; then
    choose_engine_of_prometheus
    return
  fi
  case ${POSTRIDER_TEST_ENGINE:-} in
    docker)
      engine=docker
      why=$(locked docker_lacks) || die "POSTRIDER_TEST_ENGINE=docker, but $why"
      ;;
    local) engine=local ;;
    '')
      if why=$(locked docker_lacks); then
        engine=docker
        say "engine docker: it answers and has $postgres_image and $rabbitmq_image"
      else
        engine=local
        say "engine local (servers of the distribution's packages): $why"
      fi
      ;;
    *) die "POSTRIDER_TEST_ENGINE is '$POSTRIDER_TEST_ENGINE': docker or local" ;;
  esac
  [ "$engine" = docker ] || locked local_packages || exit 1
}

# The tests' servers may come from images although there is none of Prometheus; the network of a machine is Linux's to share.
choose_engine_of_prometheus() {
  local why
  if [ "${POSTRIDER_TEST_ENGINE:-}" = local ]; then
    engine=local
  elif [ "$(uname)" = Linux ] && why=$(locked docker_lacks "$prometheus_image"); then
    engine=docker
  else
    engine=local
    say "Prometheus comes from the distribution's packages: ${why:-this is not Linux}"
  fi
  [ "$engine" = docker ] || command -v prometheus >/dev/null || locked install_packages prometheus || exit 1
}

# [IMAGE...]: fails and prints the reason if Docker can't start the servers; pulls the images if it can.
docker_lacks() {
  local image
  [ $# -gt 0 ] || set -- "$postgres_image" "$rabbitmq_image"
  command -v docker >/dev/null || { echo "there is no docker command"; return 1; }
  timeout 10 docker version --format '{{.Server.Version}}' >/dev/null 2>&1 || { echo "no Docker engine answers"; return 1; }
  for image in "$@"; do
    docker image inspect "$image" >/dev/null 2>&1 || docker_pull "$image" || return 1
  done
}

# A registry that doesn't name the image's layers within 25 s is out of reach; one that does gets ten minutes. A failure is
# remembered for ten minutes, so that one run of the tests tries once.
docker_pull() {
  local image=$1 log=$state/.pull-${1//[^A-Za-z0-9.]/-} pull waited=0
  if [ -n "$(find "$log" -mmin -10 2>/dev/null)" ]; then
    echo "$image is not here and could not be pulled a moment ago"
    return 1
  fi
  say "pulling $image"
  timeout 600 docker pull "$image" >"$log" 2>&1 9>&- &
  pull=$!
  while kill -0 "$pull" 2>/dev/null; do
    if [ "$waited" -ge 250 ] && ! grep -qE 'Pulling|Download|Waiting' "$log"; then
      kill "$pull" 2>/dev/null || true
      wait "$pull" || true
      echo "$image is not here and its registry did not answer within 25 s"
      return 1
    fi
    sleep 0.1
    waited=$((waited + 1))
  done
  if wait "$pull"; then
    rm -f "$log"
  else
    echo "$image is not here and cannot be pulled: $(tail -n 1 "$log")"
    return 1
  fi
}

# Installs what is missing of the two servers.
local_packages() {
  local missing=()
  [ -n "$(postgres_programs)" ] || missing+=(postgresql)
  [ -n "$(rabbitmq_programs)" ] || missing+=(rabbitmq-server)
  [ ${#missing[@]} = 0 ] || install_packages "${missing[@]}"
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

# Installs packages without starting a service of the system, now or at the next boot, and without making a cluster.
install_packages() {
  local log=$state/.apt.log
  local ways="install them, or start a Docker engine, or set DATABASE_URL, AMQP_URL and POSTRIDER_TEST_MANAGEMENT_URL"
  command -v apt-get >/dev/null || die "not found: $*. This system has no apt-get: $ways"
  as_root true 2>/dev/null || die "not found: $*. Installing takes root or a sudo that asks nothing: $ways"
  say "installing $* (log: $log)"
  if ! without_services "$@" >"$log" 2>&1 9>&-; then
    tail -n 20 "$log" >&2
    die "apt-get could not install $*: $ways"
  fi
}

apt() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -y --no-install-recommends \
    -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@"
}

# policy-rc.d with status 101 forbids maintainer scripts to start anything (Debian's invoke-rc.d(8)); postgresql-common reads
# createcluster.conf when a server package is configured. Both are put back as they were.
without_services() {
  local policy=/usr/sbin/policy-rc.d clusters=/etc/postgresql-common/createcluster.conf placed='' status=0 service
  # A source that isn't needed may be out of reach.
  apt update -qq || true
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
    placed=yes
  fi
  apt install postgresql-common &&
    as_root cp -p "$clusters" "$clusters.postrider" &&
    as_root sed -ri 's/^#? *create_main_cluster.*/create_main_cluster = false/' "$clusters" &&
    apt install "$@" || status=$?
  [ ! -e "$clusters.postrider" ] || as_root mv "$clusters.postrider" "$clusters"
  [ -z "$placed" ] || as_root rm -f "$policy"
  for service in "$@"; do
    as_root update-rc.d "$service" disable || true
  done
  return "$status"
}
