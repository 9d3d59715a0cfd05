# Owns one PostgreSQL server on behalf of a test binary, which holds the other end of standard input. Its commands come
# in there, "init PASSWORD", "start PORT" or "stop MODE", each answered by "ok" or "failed". At the end of the input, by
# whatever way the test binary went, the server is stopped and its directory removed.
#
# Arguments: the directory of the server's programs, the one for temporary files, then lines of postgresql.conf.
bin=$1 tmp=$2
shift 2
umask 077
# An answer that nobody reads any more must not kill this shell before it has cleaned up.
trap '' PIPE

# The path of a socket in it may have about a hundred bytes. The temporary directory may be closed to this user.
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
