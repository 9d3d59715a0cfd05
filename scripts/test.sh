#!/usr/bin/env bash
# Runs every test of every module, on every database. Arguments go to go test.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/machine.sh

need_compiler
need_databases
need_browser

failed=()
for dir in $(modules); do
	echo "test $dir"
	(cd "$dir" && go test -race -shuffle=on -timeout 30m "$@" ./...) || failed+=("$dir")
done
echo "test the loop with 3,000 seeds"
OUTBOX_LOOP_SEEDS=3000 go test -run '^TestLoop$' . || failed+=(TestLoop)
[ ${#failed[@]} = 0 ] || {
	echo "failed: ${failed[*]}" >&2
	exit 1
}
