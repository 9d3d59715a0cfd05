#!/usr/bin/env bash
# Checks the model of a task's life with spin: clean as designed, and a violation without each guard.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/machine.sh

need_compiler
type spin >/dev/null 2>&1 || { apt_install spin && type spin >/dev/null 2>&1; } || missing "spin (Debian: apt-get install spin)"

model=$PWD/docs/model/outbox.pml
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# Budgets that add up to more states than a minute visits are apart.
budgets=(
	"-DKILLS=1 -DPAUSES=1 -DLOST=0 -DFAILURES=0 -DBEATS=0"
	"-DKILLS=2 -DPAUSES=0 -DLOST=0 -DFAILURES=0 -DBEATS=0"
	"-DKILLS=0 -DPAUSES=1 -DLOST=1 -DFAILURES=1 -DBEATS=1"
	"-DKILLS=1 -DPAUSES=0 -DLOST=1 -DFAILURES=1 -DBEATS=0"
)

search() { # options of spin: sets violation and states
	# shellcheck disable=SC2086
	spin $1 -a "$model" >spin.out || { cat spin.out >&2; exit 1; }
	gcc -O2 -w -DSAFETY -DCOLLAPSE -DVECTORSZ=2048 -o pan pan.c
	./pan -m1000000 >pan.out
	violation=$(sed -n 's/^pan:[0-9]*: \(.*\) (at depth.*/\1/p' pan.out)
	states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' pan.out)
	grep -q 'max search depth too small\|out of memory' pan.out && violation="search cut short"
	[ -n "$states" ] || { cat pan.out >&2; exit 1; }
}

failed=0
echo "| model | found | states |"
echo "|---|---|---|"
for tx in 0 1; do
	for budget in "${budgets[@]}"; do
		search "-DTX=$tx $budget"
		echo "| as designed, TX=$tx${budget//-D/ } | ${violation:-nothing} | $states |"
		[ -z "$violation" ] || failed=1
	done
done
for guard in $(grep -o 'NO_[A-Z]\+' "$model" | sort -u); do
	for tx in 0 1; do
		for budget in "${budgets[@]}"; do
			search "-D$guard -DTX=$tx $budget"
			[ -z "$violation" ] || break 2
		done
	done
	echo "| $guard | ${violation:-**nothing**} | $states |"
	[ -n "$violation" ] || failed=1
done
exit $failed
