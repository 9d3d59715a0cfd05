#!/usr/bin/env bash
# Fuzzes with every fuzz test of every module for FUZZTIME each. What is found is a file in testdata/fuzz: commit it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/machine.sh

need_compiler

failed=()
for dir in $(modules); do
	for package in $(cd "$dir" && go list ./...); do
		for name in $(cd "$dir" && go test -list '^Fuzz' "$package" | grep '^Fuzz'); do
			echo "fuzz $package: $name"
			(cd "$dir" && go test -run '^$' -fuzz "^$name\$" -fuzztime "${FUZZTIME:-1m}" "$package") || failed+=("$name")
		done
	done
done
[ ${#failed[@]} = 0 ] || {
	echo "failed: ${failed[*]}" >&2
	exit 1
}
