# Owns one PgBouncer for a test binary, which holds the other end of standard input. The first line
# of the input is the password of the server's user. The answer is the directory. At the end of the
# input PgBouncer ends.
#
# Arguments: the program, the directory for temporary files, the port to listen on, the server's
# port, then lines of pgbouncer.ini.
program=$1 tmp=$2 port=$3 server=$4
shift 4
umask 077
trap '' PIPE
dir=$(mktemp -d "$tmp/outbox-pb-XXXXXX" 2>/dev/null) || dir=$(mktemp -d /tmp/outbox-pb-XXXXXX) || exit 1
pid=

clean() {
	trap '' HUP INT TERM
	if [ -n "$pid" ]; then
		kill -KILL "$pid"
		wait "$pid"
	fi 2>/dev/null
	rm -rf "$dir"
}
trap clean EXIT
trap 'exit 1' HUP INT TERM

read -r password
echo "\"postgres\" \"$password\"" >"$dir/users"
printf '%s\n' '[databases]' "* = host=127.0.0.1 port=$server" '[pgbouncer]' 'listen_addr = 127.0.0.1' "listen_port = $port" \
	'unix_socket_dir =' 'auth_type = plain' "auth_file = $dir/users" "$@" >"$dir/ini"
echo "$dir"
exec 3>&1 >"$dir/log" 2>&1
"$program" "$dir/ini" </dev/null 3>&- &
pid=$!
read -r _ || true
