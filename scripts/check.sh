#!/usr/bin/env bash
# Checks the code of every module without running it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/machine.sh

staticcheck=honnef.co/go/tools/cmd/staticcheck@v0.8.1
govulncheck=golang.org/x/vuln/cmd/govulncheck@v1.9.0

need_compiler

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
# Not go run, which hides the exit status that tells a vulnerability from a failure.
for tool in "$staticcheck" "$govulncheck"; do
	GOBIN=$tools go install "$tool"
done

failed=()
check() { # dir name command…
	local dir=$1 name=$2
	shift 2
	echo "check $dir: $name"
	(cd "$dir" && "$@") || failed+=("$dir: $name")
}

formatted() {
	local files
	files=$(gofmt -l .)
	[ -z "$files" ] || {
		echo "$files"
		return 1
	}
}

# A database of vulnerabilities that cannot be reached says nothing about the code.
vulnerabilities() {
	local status=0
	[ ! -e "$tools/unreachable" ] || return 0 # not worth another wait
	"$tools/govulncheck" ./... >"$tools/out" 2>&1 || status=$?
	cat "$tools/out"
	if [ $status = 1 ] && grep -q '^govulncheck: fetching vulnerabilities' "$tools/out"; then
		touch "$tools/unreachable"
		echo "govulncheck: skipped: its database cannot be reached"
		return 0
	fi
	return $status
}

check . gofmt formatted
check . requirements scripts/requirements.sh
for dir in $(modules); do
	check "$dir" vet go vet ./...
	check "$dir" staticcheck "$tools/staticcheck" ./...
	check "$dir" govulncheck vulnerabilities
done
[ ${#failed[@]} = 0 ] || {
	printf 'failed: %s\n' "${failed[@]}" >&2
	exit 1
}
