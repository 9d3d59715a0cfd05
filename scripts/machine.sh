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
	need_mysql
}

need_mysql() {
	if [ -n "${OUTBOX_TEST_MYSQL:-}" ] || has_mysql || { apt_install mariadb-server && has_mysql; }; then
		return
	fi
	missing "MariaDB or MySQL: set OUTBOX_TEST_MYSQL to the DSN of a server, or put mariadbd and mariadb-install-db on PATH" \
		"(Debian: apt-get install mariadb-server). Without it, go test ./... skips the tests that need it."
}

# has_mysql looks where testutil/testdb/mysqlserver.go does.
has_mysql() {
	type mariadb-install-db >/dev/null 2>&1 && { type mariadbd >/dev/null 2>&1 || [ -x /usr/sbin/mariadbd ]; }
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

# The administrator's pages are tested with a real browser.
need_browser() {
	if command -v chromium >/dev/null || { apt_install chromium fonts-dejavu-core && command -v chromium >/dev/null; }; then
		return
	fi
	missing "chromium (Debian: apt-get install chromium). Without it, go test ./... skips the tests that need it."
}
