#!/usr/bin/env bash
# An application that adds the library keeps the versions that it has.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# adds makes an application of the given requirements, adds the library, and shows what that has changed.
adds() { # module@version…
	rm -f go.mod go.sum ./*.go
	go mod init shop >init 2>&1
	go mod edit -go=1.25.0 "${@/#/-require=}"
	printf 'package main\n\nimport (\n' >main.go
	for module in "$@"; do
		printf '\t_ "%s"\n' "${module%@*}" >>main.go
	done
	printf ')\n\nfunc main() {}\n' >>main.go
	go mod tidy >tidy 2>&1 || cat tidy
	go list -m all | sort >before

	printf 'package main\n\nimport _ "github.com/gorm-outbox/outbox"\n' >outbox.go
	go mod edit -require=github.com/gorm-outbox/outbox@v0.0.0 -replace=github.com/gorm-outbox/outbox="$root"
	go mod tidy >tidy 2>&1 || cat tidy
	go list -m all | sort >after
	comm -23 before after >gone
	[ ! -s gone ] || {
		echo "the library changes an application's"
		cat gone
		echo "to"
		while read -r module _; do grep "^$module " after || true; done <gone
		return 1
	}
}

adds gorm.io/gorm@v1.25.12 gorm.io/driver/postgres@v1.5.11 github.com/jackc/pgx/v5@v5.5.5
adds gorm.io/gorm@v1.30.0 gorm.io/driver/sqlite@v1.6.0
adds gorm.io/gorm@v1.30.0 gorm.io/driver/postgres@v1.6.0 github.com/jackc/pgx/v5@v5.7.6 gorm.io/driver/mysql@v1.6.0
