# Part of scripts/servers: a server is a container postrider-NAME whose labels tell which directory it belongs to.
# shellcheck shell=bash disable=SC2154

container() { printf 'postrider-%s' "$name"; }

docker_create_postgres() {
  local each options=() prelude='chown -R postgres /etc/postrider'
  for each in "${settings[@]}"; do options+=(-c "$each"); done
  [ -z "$tls" ] || options+=(-c ssl=on -c ssl_ca_file=/etc/postrider/ca.pem -c ssl_cert_file=/etc/postrider/cert.pem -c ssl_key_file=/etc/postrider/key.pem)
  mkdir "$dir/files" && postgres_hba >"$dir/files/pg_hba.conf" || return
  run_options=(-p "127.0.0.1:$port:5432" -e POSTGRES_PASSWORD=postgres -e POSTGRES_INITDB_ARGS=-N)
  if [ -n "$cluster" ]; then
    each=$(primary_conninfo "postrider-$cluster" 5432)
    options+=(-c "primary_conninfo=$each" -c "primary_slot_name=$(standby_slot)")
    run_options+=(-e "PRIMARY=$each" -e "SLOT=$(standby_slot)")
    # shellcheck disable=SC2016 # expanded in the container
    prelude+=' && install -d -o postgres -m 700 "$PGDATA" && { [ -s "$PGDATA/PG_VERSION" ] ||
      gosu postgres pg_basebackup -d "$PRIMARY" -D "$PGDATA" -R -X stream -C -S "$SLOT" -c fast; }'
  fi
  if [ -n "$disk" ]; then
    docker_disk || return
    run_options+=(-v "$(container)-disk:/disk" -e PGDATA=/disk/data)
  fi
  # shellcheck disable=SC2016 # expanded in the container
  docker_create "$postgres_image" "$prelude"' && exec docker-entrypoint.sh "$@"' \
    postgres -c hba_file=/etc/postrider/pg_hba.conf "${options[@]}" || return
  [ -z "$cluster" ] || docker_network
}

docker_create_rabbitmq() {
  mkdir "$dir/files" || return
  rabbitmq_conf 5671 /etc/postrider >"$dir/files/rabbitmq.conf"
  rabbitmq_plugins rabbitmq_prometheus >"$dir/files/enabled_plugins"
  run_options=(-p "127.0.0.1:$port:5672" -p "127.0.0.1:$management_port:15672")
  if [ -n "$cluster" ]; then
    # One cookie for all its nodes: the name of the first is as secret as a test needs it.
    printf '%s' "$cluster" >"$dir/files/erlang.cookie"
    run_options+=(-e "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=$cluster_erl")
  fi
  [ -z "$tls" ] || run_options+=(-p "127.0.0.1:$tls_port:5671")
  # shellcheck disable=SC2016 # expanded in the container
  docker_create "$rabbitmq_image" 'cd /etc/postrider && chown -R rabbitmq . && cp -p rabbitmq.conf /etc/rabbitmq/conf.d/90-postrider.conf &&
    cp -p enabled_plugins /etc/rabbitmq/ &&
    { [ ! -f erlang.cookie ] || { cp -p erlang.cookie /var/lib/rabbitmq/.erlang.cookie && chmod 400 /var/lib/rabbitmq/.erlang.cookie; }; } && cd / && exec docker-entrypoint.sh "$@"' rabbitmq-server || return
  [ -z "$cluster" ] || docker_network
}

# In memory, so that it can be filled within a moment. It lasts for as long as a container has it: a second one does, from which it
# is filled and cleared whether the server lives or not.
docker_disk() {
  docker volume create --label "postrider.servers=$root" --driver local --opt type=tmpfs --opt device=tmpfs \
    --opt "o=size=${disk}m,mode=755" "$(container)-disk" >/dev/null &&
    docker run -d --name "$(container)-disk" --label "postrider.servers=$root" -v "$(container)-disk:/disk" \
      --entrypoint sleep "$postgres_image" infinity >/dev/null
}
docker_fill() {
  [ -n "${disk:-}" ] || die "$name was started without --disk"
  # Ends with an error: there is no room left.
  docker exec "$(container)-disk" sh -c 'cat /dev/zero >/disk/filler 2>/dev/null; df -m /disk >&2'
}
docker_spare() { docker exec "$(container)-disk" rm -f /disk/filler; }

# The nodes of a cluster, or a primary and its standbys, have a network of their own beside the one over which clients come, so that they can be parted.
docker_network() {
  docker network inspect "postrider-$cluster" >/dev/null 2>&1 ||
    docker network create --label "postrider.servers=$root" "postrider-$cluster" >/dev/null || return
  # The first one may have been made before there was anybody to share a network with.
  [ "$cluster" = "$name" ] || docker network connect "postrider-$cluster" "postrider-$cluster" 2>/dev/null || true
  docker_mend
}
docker_cut() { [ -n "$cluster" ] && docker network disconnect "postrider-$cluster" "$(container)"; }
docker_mend() { [ -n "$cluster" ] && docker network connect "postrider-$cluster" "$(container)"; }
docker_node() { printf 'rabbit@postrider-%s' "$1"; }

# Its own user owns nothing of this, and need not: it reads, and writes into its own directory.
docker_create_prometheus() {
  docker create --name "$(container)" --label "postrider.servers=$root" --network host "$prometheus_image" \
    --config.file=/etc/postrider/prometheus.yml --storage.tsdb.path=/prometheus --web.listen-address="127.0.0.1:$port" >/dev/null &&
    docker cp -q "$conf/." "$(container):/etc/postrider" >/dev/null
}

# IMAGE PRELUDE COMMAND...: files reach the container by docker cp, which works with a remote engine too, and belong to root; a
# server refuses a key that others own: the prelude gives them to it before the image's own entry point runs.
docker_create() {
  local image=$1 prelude=$2
  [ -z "$tls" ] || copy_tls "$dir/files" || return
  docker create --name "$(container)" --hostname "$(container)" --label "postrider.servers=$root" "${run_options[@]}" \
    --entrypoint sh "$image" -c "$prelude" sh "${@:3}" >/dev/null &&
    docker cp -q "$dir/files/." "$(container):/etc/postrider" >/dev/null
}

docker_launch() { docker start "$(container)" >/dev/null; }
docker_running() { [ "$(docker inspect -f '{{.State.Running}}' "$(container)" 2>/dev/null)" = true ]; }
docker_pause() { docker pause "$(container)" >/dev/null; }
docker_unpause() { docker unpause "$(container)" >/dev/null; }
docker_logs() { docker logs "$(container)" 2>&1; }
docker_remove() {
  docker rm -f -v "$(container)" >/dev/null 2>&1 || true
  if [ -n "${disk:-}" ]; then
    docker rm -f "$(container)-disk" >/dev/null 2>&1 || true
    docker volume rm "$(container)-disk" >/dev/null 2>&1 || true
  fi
  # Refused while another node is in it: the last one takes it away.
  docker network rm "postrider-${cluster:-$name}" >/dev/null 2>&1 || true
}

# A published port passes one more process. The process id is 0 where the engine is on another machine.
docker_direct() {
  local address pid
  address=$(docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{"\n"}}{{end}}' "$(container)" | head -n 1)
  pid=$(docker inspect -f '{{.State.Pid}}' "$(container)")
  sed "s/@127\.0\.0\.1:$port\b/@$address:$([ "$kind" = postgres ] && echo 5432 || echo 5672)/; s/@127\.0\.0\.1:$management_port\b/@$address:15672/
    s/@127\.0\.0\.1:$tls_port\b/@$address:5671/" "$dir/env"
  printf 'PID=%s\n' "$pid"
}

# The signal goes to the server itself: the entry points exec it.
docker_stop() {
  docker kill -s "$1" "$(container)" >/dev/null
  timeout "$stop_timeout" docker wait "$(container)" >/dev/null
}

docker_psql() { docker exec -e PGPASSWORD=postgres "$(container)" psql -h 127.0.0.1 -U postgres -XqAt -v ON_ERROR_STOP=1 "$@"; }
docker_ctl_postgres() { psql_arguments docker_psql "$@"; }
docker_ctl_rabbitmq() { docker exec "$(container)" rabbitmqctl "$@"; }

# Containers of this directory whose record is gone.
docker_sweep() {
  local left
  command -v docker >/dev/null || return 0
  left=$(timeout 10 docker ps -aq --filter "label=postrider.servers=$root" --filter "name=^/postrider-$1" 2>/dev/null) || return 0
  # shellcheck disable=SC2086 # one word for each container
  [ -z "$left" ] || docker rm -f -v $left >/dev/null
  left=$(timeout 10 docker volume ls -q --filter "label=postrider.servers=$root" --filter "name=^postrider-$1" 2>/dev/null) || return 0
  # shellcheck disable=SC2086 # one word for each volume
  [ -z "$left" ] || docker volume rm $left >/dev/null
  left=$(timeout 10 docker network ls -q --filter "label=postrider.servers=$root" --filter "name=^postrider-$1" 2>/dev/null) || return 0
  # shellcheck disable=SC2086 # one word for each network
  [ -z "$left" ] || docker network rm $left >/dev/null
}
