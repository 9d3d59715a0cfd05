# Owns one PostgreSQL server for a test binary, which holds the other end of standard input.
# Commands come from standard input: "init PASSWORD", "start PORT" or "stop MODE". Each is answered
# by "ok" or "failed". At the end of the input, in whatever way the test binary has ended, the
# server is stopped and its directory is removed.
#
# Arguments: the directory of the server's programs, the directory for temporary files, then lines
# of postgresql.conf.
bin=$1 tmp=$2
shift 2
umask 077
# An answer that is no longer read must not kill this shell before it has cleaned up.
trap '' PIPE

# The path of a socket in this directory may have about a hundred bytes. This user may have no
# access to the temporary directory.
{ [ ${#tmp} -lt 70 ] && dir=$(mktemp -d "$tmp/outbox-pg-XXXXXX" 2>/dev/null); } ||
	dir=$(mktemp -d /tmp/outbox-pg-XXXXXX) || exit 1
data=$dir/data

clean() {
	trap '' HUP INT TERM
	if read -r pid 2>/dev/null <"$data/postmaster.pid"; then
		kill -CONT "$pid" # a test may have paused it
		"$bin/pg_ctl" stop -s -D "$data" -m immediate -t 20 || kill -KILL "$pid"
	fi
	rm -rf "$dir"
}
trap clean EXIT
trap 'exit 1' HUP INT TERM

echo "$dir"
exec 3>&1 >"$dir/log" 2>&1

init() {
	echo "$arg" >"$dir/password"
	# Not every system has the locale C.UTF-8.
	for locale in C.UTF-8 C; do
		"$bin/initdb" -D "$data" --no-sync --encoding=UTF8 --locale=$locale \
			--username=postgres --pwfile="$dir/password" --auth=password && break
	done &&
		printf '%s\n' "unix_socket_directories = '$dir'" "$@" >>"$data/postgresql.conf"
}

while read -r command arg; do
	case $command in
	init) init "$@" ;;
	start) "$bin/pg_ctl" start -s -D "$data" -l "$dir/log" -t 60 -o "-p $arg" ;;
	stop) "$bin/pg_ctl" stop -s -D "$data" -m "$arg" -t 60 ;;
	esac </dev/null 3>&- && answer=ok || answer=failed
	echo "$answer" >&3
done
