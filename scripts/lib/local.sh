# Part of scripts/servers: servers of the distribution's packages as ordinary processes, apart from the system's own services.
# shellcheck shell=bash disable=SC2154

# The directory of PostgreSQL's server programs; the newest of Debian's, which keeps them out of PATH.
postgres_programs() {
  local each
  for each in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV) "$(dirname "$(command -v initdb || echo /)")"; do
    [ -x "$each/initdb" ] && [ -x "$each/postgres" ] && printf '%s\n' "$each" && return
  done
  return 0
}

# Debian's /usr/sbin/rabbitmq-server is a wrapper that insists on the system's user and directories: not that one.
rabbitmq_programs() {
  local each
  for each in /usr/lib/rabbitmq/bin "$(dirname "$(command -v rabbitmq-server || echo /)")"; do
    [ -x "$each/rabbitmq-server" ] && printf '%s\n' "$each" && return
  done
  return 0
}

# initdb and postgres refuse to run as root.
as_server() {
  if [ "$(id -u)" = 0 ]; then
    (cd / && runuser -u "$(server_user)" -- "$@")
  else
    (cd / && "$@")
  fi
}
server_user() { if id postgres >/dev/null 2>&1; then echo postgres; else echo nobody; fi; }

# .servers/NAME, or a directory under /tmp where the server's user can't get there (a clone below /root).
local_directory() {
  if as_server test -x "$dir"; then printf '%s\n' "$dir"; else (umask 066 && mktemp -d "/tmp/postrider-$name.XXXXXX"); fi
}

local_create_postgres() {
  local programs each value
  [ -z "$disk" ] || local_fill
  programs=$(postgres_programs)
  install -d -m 755 "$private" && mkdir -p "$private/etc" || return
  postgres_hba >"$private/etc/pg_hba.conf"
  printf 'postgres\n' >"$private/etc/password"
  [ -z "$tls" ] || copy_tls "$private/etc" || return
  : >"$private/log"
  mkdir "$private/data"
  [ "$(id -u)" != 0 ] || chown -R "$(server_user)" "$private/etc" "$private/log" "$private/data"
  if [ -n "$cluster" ]; then
    each=$(primary_conninfo 127.0.0.1 "$(sed -n 's/^port=//p' "$state/$cluster/server")")
    settings+=("primary_conninfo=$each" "primary_slot_name=$(standby_slot)")
    chmod 700 "$private/data"
    as_server "$programs/pg_basebackup" -d "$each" -D "$private/data" -R -X stream -C -S "$(standby_slot)" -c fast >>"$private/log" 2>&1 || return
  else
    as_server "$programs/initdb" -D "$private/data" -U postgres -N -E UTF8 --locale=C.UTF-8 --auth=scram-sha-256 \
      --pwfile="$private/etc/password" >>"$private/log" 2>&1 || return
  fi
  : >"$private/log"
  {
    printf "listen_addresses = '127.0.0.1'\nport = %s\nunix_socket_directories = ''\n" "$port"
    printf "hba_file = '%s/etc/pg_hba.conf'\n" "$private"
    [ -z "$tls" ] || printf "ssl = on\nssl_ca_file = '%s/ca.pem'\nssl_cert_file = '%s/cert.pem'\nssl_key_file = '%s/key.pem'\n" \
      "$private/etc" "$private/etc" "$private/etc"
    for each in "${settings[@]}"; do
      value=${each#*=}
      printf "%s = '%s'\n" "${each%%=*}" "${value//\'/\'\'}"
    done
  } >>"$private/data/postgresql.conf"
}

local_create_rabbitmq() {
  install -d -m 755 "$private" && mkdir -p "$private/etc" "$private/home" || return
  {
    printf 'listeners.tcp.1 = 127.0.0.1:%s\nmanagement.tcp.ip = 127.0.0.1\nmanagement.tcp.port = %s\n' "$port" "$management_port"
    printf 'log.console = true\nlog.console.level = info\nlog.file = false\n'
    rabbitmq_conf "127.0.0.1:$tls_port" "$private/etc"
  } >"$private/etc/rabbitmq.conf"
  rabbitmq_plugins >"$private/etc/enabled_plugins"
  : >"$private/etc/rabbitmq-env.conf"
  [ -z "$tls" ] || copy_tls "$private/etc" || return
  (umask 277 && if [ -n "$cluster" ]; then printf '%s' "$cluster"; else od -An -N 16 -tx1 /dev/urandom | tr -d ' \n'; fi >"$private/home/.erlang.cookie")
}

local_create_prometheus() {
  install -d -m 755 "$private" && mkdir -p "$private/etc" && cp -R "$conf/." "$private/etc/"
}

# Sets `rabbitmq`: every path and port that a broker of the system would otherwise share ("Supported environment variables" in
# RabbitMQ's configuration guide). RUNNING_UNDER_SYSTEMD makes the start script exec the VM, so that its pid is the broker's.
rabbitmq_environment() {
  local erl='-kernel inet_dist_use_interface {127,0,0,1}'
  [ -z "$cluster" ] || erl+=" $cluster_erl"
  rabbitmq=(env -i PATH="$PATH" LANG=C.UTF-8 HOME="$private/home" ERL_EPMD_PORT="$epmd_port" ERL_EPMD_ADDRESS=127.0.0.1
    RABBITMQ_NODENAME="$(local_node "$name")" RABBITMQ_DIST_PORT="$dist_port" RUNNING_UNDER_SYSTEMD=true
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="$erl"
    RABBITMQ_BASE="$private" RABBITMQ_MNESIA_BASE="$private/data" RABBITMQ_LOG_BASE="$private/home" RABBITMQ_PID_FILE="$private/home/pid"
    RABBITMQ_CONFIG_FILE="$private/etc/rabbitmq.conf" RABBITMQ_ADVANCED_CONFIG_FILE="$private/etc/advanced.config"
    RABBITMQ_CONF_ENV_FILE="$private/etc/rabbitmq-env.conf" RABBITMQ_ENABLED_PLUGINS_FILE="$private/etc/enabled_plugins"
    RABBITMQ_GENERATED_CONFIG_DIR="$private/home")
}

local_node() { printf 'postrider-%s@localhost' "$1"; }
local_cut() { die 'local servers share one network: a node cannot be cut off'; }
local_mend() { local_cut; }
local_fill() { die 'local servers have no disk of their own: none can be filled'; }
local_spare() { local_fill; }

local_launch() {
  case $kind in
    postgres)
      # What a killed postmaster leaves; its pid may still be there as a zombie, and postgres would take it for a running one.
      rm -f "$private/data/postmaster.pid"
      as_server "$(postgres_programs)/pg_ctl" -D "$private/data" -l "$private/log" -w -t "$start_timeout" start >/dev/null </dev/null
      ;;
    rabbitmq)
      local rabbitmq
      rabbitmq_environment
      local_detached "${rabbitmq[@]}" "$(rabbitmq_programs)/rabbitmq-server"
      ;;
    prometheus)
      local_detached prometheus --config.file="$private/etc/prometheus.yml" --storage.tsdb.path="$private/data" \
        --web.listen-address="127.0.0.1:$port"
      ;;
  esac
}

# A session of its own: ctrl-c at the terminal must not reach it.
local_detached() {
  setsid "$@" >>"$private/log" 2>&1 </dev/null &
  printf '%s\n' "$!" >"$private/pid"
  # Until it has become the server it is a copy of this shell, which main_process would not know.
  until local_running || ! lives "$!"; do sleep 0.05; done
}

# The pid of the server, if it runs: a pid that now belongs to somebody else doesn't know our directory.
main_process() {
  local pid
  if [ "$kind" = postgres ]; then pid=$(head -n 1 "$private/data/postmaster.pid" 2>/dev/null); else pid=$(cat "$private/pid" 2>/dev/null); fi
  [ -n "$pid" ] && grep -qsF "$private" "/proc/$pid/cmdline" "/proc/$pid/environ" && printf '%s\n' "$pid"
}
child_processes() { cat "/proc/$1"/task/*/children 2>/dev/null || true; }

local_direct() {
  cat "$dir/env"
  printf 'PID=%s\n' "$(main_process)"
}

local_running() { main_process >/dev/null; }

# The parent first: it would otherwise notice a child that stands still, or start another.
local_pause() {
  local main
  main=$(main_process) || die "$kind $name does not run"
  kill -STOP "$main"
  # shellcheck disable=SC2046 # one word for each process
  kill -STOP $(child_processes "$main") 2>/dev/null || true
}
local_unpause() {
  local main
  main=$(main_process) || die "$kind $name does not run"
  # shellcheck disable=SC2046 # one word for each process
  kill -CONT "$main" $(child_processes "$main") 2>/dev/null || true
}

# SIGNAL [SECONDS]: PostgreSQL's children outlive a killed postmaster until they look for it; a crash takes them too.
local_stop() {
  local main children deadline=$((SECONDS + ${2:-$stop_timeout})) each
  main=$(main_process) || return 0
  children=$(child_processes "$main")
  kill "-$1" "$main"
  # shellcheck disable=SC2086 # one word for each process
  [ "$1" != KILL ] || kill -KILL $children 2>/dev/null || true
  for each in $main $children; do
    while lives "$each"; do
      [ "$SECONDS" -lt "$deadline" ] || return 1
      sleep 0.05
    done
  done
}

# A zombie has ended only when its other threads have.
lives() {
  [ -d "/proc/$1" ] || return
  [ "$(sed -n 's/^State:.//p; s/^Threads:.//p' "/proc/$1/status" 2>/dev/null | tr -d '\n')" != 'Z (zombie)1' ]
}

local_logs() { cat "$private/log"; }

local_remove() {
  if local_running; then
    local_unpause
    # Killed outright PostgreSQL would leave its shared memory behind.
    { [ "$kind" = postgres ] && local_stop QUIT 5; } || local_stop KILL 5 || say "$kind $name does not end"
  fi
  [ "$kind" != rabbitmq ] || end_epmd
  rm -rf "${private:?}"
}

# The port mapper outlives its node, and refuses to end until it has noticed the node's end.
end_epmd() {
  local tries=0
  while ERL_EPMD_PORT=$epmd_port epmd -names >/dev/null 2>&1 && [ "$tries" -lt 50 ]; do
    ERL_EPMD_PORT=$epmd_port epmd -kill >/dev/null 2>&1 || true
    sleep 0.1
    tries=$((tries + 1))
  done
}

local_psql() {
  env -i PATH="$PATH" LANG=C.UTF-8 PGPASSWORD=postgres "$(postgres_programs)/psql" -h 127.0.0.1 -p "$port" -U postgres -XqAt -v ON_ERROR_STOP=1 "$@"
}
local_ctl_postgres() { psql_arguments local_psql "$@"; }
local_ctl_rabbitmq() {
  local rabbitmq
  rabbitmq_environment
  "${rabbitmq[@]}" "$(rabbitmq_programs)/rabbitmqctl" "$@"
}
