# Part of scripts/servers: what both engines give the servers, and when a server counts as ready.
# shellcheck shell=bash disable=SC2154

# pg_hba.conf: the administrator's way in on the Unix socket (the image's entry point uses it), SCRAM over TCP.
postgres_hba() {
  local connection=host
  [ -z "$tls" ] || connection=hostssl
  printf '%s' "$hba"
  printf 'local all all trust\n%s all all all scram-sha-256\n%s replication all all scram-sha-256\n' "$connection" "$connection"
}

# HOST PORT: what a standby connects to its primary with. The database is for the synchronization of slots.
primary_conninfo() {
  printf 'host=%s port=%s user=postgres password=postgres dbname=postgres application_name=%s' "$1" "$2" "$(standby_slot)"
}
standby_slot() { printf '%s' "${name//-/_}"; }

# LISTENER ETC: the statistics of the management API are taken every second instead of every five, so that a test waits less; the
# largest message is RabbitMQ 4's, which was 128 MiB before.
rabbitmq_conf() {
  printf 'loopback_users.guest = false\ncollect_statistics_interval = 1000\nmax_message_size = 16777216\n'
  if [ -n "$tls" ]; then
    printf 'listeners.ssl.1 = %s\nssl_options.cacertfile = %s/ca.pem\nssl_options.certfile = %s/cert.pem\nssl_options.keyfile = %s/key.pem\n' "$1" "$2" "$2" "$2"
    printf 'ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = false\nssl_cert_login_from = common_name\n'
    printf 'auth_mechanisms.1 = PLAIN\nauth_mechanisms.2 = AMQPLAIN\nauth_mechanisms.3 = EXTERNAL\n'
  fi
  printf '%s' "$conf"
}

# For the nodes of a cluster: one that is silent for this many seconds is gone (a minute by default).
# shellcheck disable=SC2034 # used by both engines
cluster_erl='-kernel net_ticktime 8'

rabbitmq_plugins() {
  local plugins=(rabbitmq_management "$@")
  [ -z "$tls" ] || plugins+=(rabbitmq_auth_mechanism_ssl)
  (IFS=, && printf '[%s].\n' "${plugins[*]}")
}

copy_tls() {
  local each
  for each in ca cert key; do install -m 600 "$tls/$each.pem" "$1/" || return; done
}

# RUNNER ARGS...: statements, or psql's own options.
psql_arguments() {
  local runner=$1 each arguments=()
  shift
  case ${1:-} in
    -*) arguments=("$@") ;;
    *) for each in "$@"; do arguments+=(-c "$each"); done ;;
  esac
  "$runner" "${arguments[@]}"
}

await_ready() {
  local deadline=$((SECONDS + start_timeout))
  while [ "$SECONDS" -lt "$deadline" ]; do
    "${kind}_answers" && return
    # A process that is just becoming another program cannot be recognized for an instant.
    "${engine}_running" || { sleep 0.3 && "${engine}_running"; } || return
    sleep 0.2
  done
  return 1
}

# A server is ready when it answers on each port that is handed out. That the port takes connections proves nothing: Docker's proxy does
# as soon as the container runs, and closes them while nobody listens inside.

# PORT BYTES: the first byte that comes back (as a number) for these (as printf writes them).
first_byte() {
  local byte
  # shellcheck disable=SC2016 # expanded by the inner shell
  byte=$(timeout 5 bash -c 'exec 3<>"/dev/tcp/127.0.0.1/$0" && printf "$1" >&3 && head -c 1 <&3 | od -An -tu1' "$1" "$2" 2>/dev/null) || return
  printf '%s' "${byte// /}"
}

# S or N (83, 78) answers SSLRequest (PostgreSQL, "Message Formats"), also while the server is starting; then it must take a query,
# over TCP: the image's first, temporary server listens on its Unix socket only.
postgres_answers() {
  [[ $(first_byte "$port" '\0\0\0\10\4\322\26\57') =~ ^(83|78)$ ]] && [ "$("${engine}_psql" -c 'select 1' 2>/dev/null)" = 1 ]
}

# AMQP: a broker answers the protocol header with a method frame (type 1; AMQP 0-9-1, 2.2.4 and 4.2.3). TLS, whose listener comes up
# after the other: a ClientHello without content (handshake, TLS 1.0, 4 bytes; type 1, 0 bytes) is answered with an alert (21; RFC 8446,
# 5.1 and 6). Management: says that the virtual hosts are up.
rabbitmq_answers() {
  [ "$(first_byte "$port" 'AMQP\0\0\11\1')" = 1 ] || return
  [ -z "$tls" ] || [ "$(first_byte "$tls_port" '\26\3\1\0\4\1\0\0\0')" = 21 ] || return
  # shellcheck disable=SC2016 # expanded by the inner shell
  timeout 5 bash -c 'exec 3<>"/dev/tcp/127.0.0.1/$0" &&
    printf "GET /api/health/checks/virtual-hosts HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\nConnection: close\r\n\r\n" >&3 &&
    head -n 1 <&3' "$management_port" 2>/dev/null | grep -q ' 200 '
}

# It has read its rules and replayed its data ("Management API" in its manual).
prometheus_answers() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  timeout 5 bash -c 'exec 3<>"/dev/tcp/127.0.0.1/$0" && printf "GET /-/ready HTTP/1.0\r\n\r\n" >&3 && head -n 1 <&3' "$port" 2>/dev/null |
    grep -q ' 200 '
}
