#!/usr/bin/env bash
# Runs every test of every module, on every database. Arguments go to go test.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/machine.sh

need_compiler
need_databases
need_browser

work=$(mktemp -d)
job=
trap '[ -z "$job" ] || kill -INT -- "-$job" || true; rm -rf "$work"' EXIT

# tests runs a command in a module, and notes if it fails.
tests() { # name dir command…
	local name=$1 dir=$2
	shift 2
	echo "test $name"
	(cd "$dir" && "$@") || echo "$name" >>"$work/failed"
}

# The root module beside the others, with more tests at a time than there are processors: most of them wait, for a database
# or for time to pass. The race detector watches the packages whose own goroutines meet; it takes several times as long, and
# every dependency would be compiled twice. make test TESTFLAGS=-race has it watch all of them.
racing="^$(go list .)(/internal/commitwatch|/internal/dispatch|/internal/store|/pgnotify)?$"
go_test=(go test -shuffle=on -p 2 -parallel 6 -timeout 20m)
others() {
	local dir
	for dir in $(modules | grep -vFx .); do
		tests "$dir" "$dir" "${go_test[@]}" "$@" ./...
	done
	# Without the race detector, which does not stand testing/synctest.
	tests "the loop under a fake clock, with 3,000 seeds" . env OUTBOX_LOOP_SEEDS=3000 go test -count=1 -timeout 15m -run '^TestLoop' ./internal/dispatch
}
set -m # a process group of its own, which an interrupt reaches
others "$@" >"$work/others" 2>&1 </dev/null &
job=$!
set +m
tests "the root, with the race detector" . "${go_test[@]}" -race "$@" $(go list ./... | grep -E "$racing")
tests "the root's other packages" . "${go_test[@]}" "$@" $(go list ./... | grep -vE "$racing")
wait "$job"
job=
cat "$work/others"
[ ! -e "$work/failed" ] || {
	sed 's/^/failed: /' "$work/failed" >&2
	exit 1
}
