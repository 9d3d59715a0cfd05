#!/usr/bin/env bash
# Runs every test of every module, on every database. Arguments go to go test.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/machine.sh

need_compiler
need_databases
need_browser

out=$(mktemp -d)
names=() jobs=()
trap 'kill "${jobs[@]}" 2>/dev/null || true; rm -rf "$out"' EXIT

# start runs a command in a module in the background.
start() { # name dir command…
	local name=$1 dir=$2 log=$out/${#jobs[@]}
	shift 2
	(cd "$dir" && exec "$@") >"$log" 2>&1 </dev/null &
	names+=("$name") jobs+=($!)
}

# Side by side, and more at a time than there are processors: most tests wait, for a database or for time to pass.
for dir in $(modules); do
	start "$dir" "$dir" go test -race -shuffle=on -p 4 -parallel 8 -timeout 30m "$@" ./...
done
start "the loop with 3,000 seeds" . env OUTBOX_LOOP_SEEDS=3000 go test -run '^TestLoop$' .

failed=()
for i in "${!jobs[@]}"; do
	wait "${jobs[i]}" || failed+=("${names[i]}")
	echo "test ${names[i]}"
	cat "$out/$i"
done
[ ${#failed[@]} = 0 ] || {
	printf 'failed: %s\n' "${failed[@]}" >&2
	exit 1
}
