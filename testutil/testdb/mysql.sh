# Owns one server of MySQL or MariaDB for a test binary, which holds the other end of standard
# input. A line "start PORT PASSWORD" starts the server and is answered by its process id. At the
# end of the input, in whatever way the test binary has ended, the server is stopped and its
# directory removed.
#
# Arguments: "mariadb" or "mysql"; the program mariadb-install-db, or a data directory of MySQL's to
# copy, which may be empty; the server's program; the directory for temporary files; and the
# server's further arguments.
kind=$1 install=$2 server=$3 tmp=$4
shift 4
umask 077
trap '' PIPE
{ [ ${#tmp} -lt 70 ] && dir=$(mktemp -d "$tmp/outbox-my-XXXXXX" 2>/dev/null); } ||
	dir=$(mktemp -d /tmp/outbox-my-XXXXXX) || exit 1
pid=

clean() {
	trap '' HUP INT TERM
	if [ -n "$pid" ]; then
		kill -CONT "$pid"
		kill -KILL "$pid" # its data need no orderly shutdown
		wait "$pid"
	fi 2>/dev/null
	rm -rf "$dir"
}
trap clean EXIT
trap 'exit 1' HUP INT TERM

# A server that starts removes all temporary tables from TMPDIR, also those of another server.
mkdir "$dir/tmp" || exit 1
export TMPDIR="$dir/tmp"

own=
case $kind in
mariadb)
	initialize() {
		"$install" --no-defaults --datadir="$dir/data" --auth-root-authentication-method=normal --skip-test-db
	}
	;;
mysql)
	initialize() {
		if [ -n "$install" ]; then
			cp -R "$install" "$dir/data"
		else
			"$server" --no-defaults --datadir="$dir/data" --initialize-insecure
		fi
	}
	own="--mysqlx=OFF --skip-log-bin --performance-schema=OFF --secure-file-priv=NULL"
	;;
esac

echo "$dir"
exec 3>&1 >"$dir/log" 2>&1
initialize </dev/null 3>&- && echo ok >&3 || echo failed >&3

while read -r _ port password; do
	[ -z "$pid" ] || wait "$pid"
	# A node that has joined a cluster has the user of the first node.
	echo "CREATE USER IF NOT EXISTS outbox@'127.0.0.1' IDENTIFIED BY '$password';
ALTER USER outbox@'127.0.0.1' IDENTIFIED BY '$password';
GRANT ALL ON *.* TO outbox@'127.0.0.1' WITH GRANT OPTION;" >"$dir/init.sql"
	# The time zone is unusual, to find code that mistakes the session's time zone for the process's
	# or for UTC.
	# shellcheck disable=SC2086 # it is several words
	"$server" --no-defaults --datadir="$dir/data" --socket="$dir/socket" --pid-file="$dir/pid" --port="$port" \
		--bind-address=127.0.0.1 --skip-name-resolve --init-file="$dir/init.sql" --default-time-zone=+05:30 \
		--character-set-server=utf8mb4 --max-connections=300 --innodb-flush-log-at-trx-commit=0 \
		--innodb-print-all-deadlocks=ON $own "$@" </dev/null 3>&- &
	pid=$!
	echo $pid >&3
done
