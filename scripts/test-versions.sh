#!/usr/bin/env bash
# Runs Conformance and the tests of the promises on the oldest and the newest version of each database server that can be had.
# make test runs all tests, on the installed versions. A server that cannot be had is skipped, or fails when CI is not empty.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/machine.sh

need_compiler

# What a server's version may change: statements, locks, types and the schema. Subtests are named after the databases.
promises=(
	# creation
	TaskExistsIfAndOnlyIfTheTransactionCommits NothingRunsBeforeTheCommit RolledBackTaskNeverRuns CommitAfterTheFirstLook
	ArgsTravelUnchanged
	# keys
	Key KeyOfAnUncommittedHolder KeyHasOneWinner KeyUnderRepeatableRead HeldKeyKeepsNoOther
	# claims
	TwoClaimsOfOneRow OrderOfDueTasks ManyQueues RunDue TaskThatNobodyCanRunIsParked
	RowLockedForAMomentIsNotLeft
	# runs and their ends
	TransactionalHandler OutcomeOfALostClaimIsRefused OutcomeInDoubt StatementsChangeWhatTheirFenceNames Retries
	LockedRowKeepsNoOther DeadlockIsRunAgain LockWaitIsRunAgain Isolation
	# start times
	NeverEarly StartTime StartTimeOfATransactionThatCommitsLate InstantsAcrossTimeZones
	# changes
	ChangeByState CancelAgainstTheClaim CancelInARolledBackTransaction Rerun
	# history
	PruneDeletesWhatIsOldOnly HistoryInPartitions RefusedTextIsReplaced
	# Migrate
	TenFirstMigratesAtOnce MigrateEndsWithItsContext MigrateThatIsCutShortLeavesNoLock SchemaByNamingStrategy
	MissingIndexesAndTables ColumnsAndIndexesOfOthers RightsOfADispatcher
	# processes that are gone
	RescueHalfDone OrphansAreThoseOfNoProcess
	# settings of a session
	SettingsOfMySQL CharacterSetOfTheDatabase StatementsAreKeptPrepared
)
# Processes side by side, that die or pause.
scenarios=(TwoProcessesRunEachTaskOnce KilledProcess KilledProcessIsRescuedInTime StoppedProcessCannotWrite)
pages=(Pages Bulk Changes CountsOfFailures ChartCountsOnce Plans)

work=$(mktemp -d)
jobs=()
trap 'for job in "${jobs[@]}"; do kill -INT -- "-$job" 2>/dev/null || true; done; rm -rf "$work"' EXIT

# compile makes a test binary, which must have the tests.
compile() { # package name…
	local package=$1 name
	shift
	go test -c -o "$work/${package//\//-}.test" "./$package"
	"$work/${package//\//-}.test" -test.list . >"$work/list"
	for name in "$@"; do
		grep -qx "Test$name" "$work/list" || {
			echo "$package has no Test$name" >&2
			exit 1
		}
	done
}

# tests runs tests of a package.
tests() { # package database name…
	local package=$1 database=$2 names
	shift 2
	names=$(IFS='|' && echo "$*")
	(cd "$package" && "$work/${package//\//-}.test" -test.parallel 4 -test.timeout 10m -test.run "^Test($names)\$/^$database\$" $verbose)
}

# run runs the tests on one server and prints the line that tells of it.
run() { # name database version
	local log="$work/$2 $3" failed=0 verbose=
	unset OUTBOX_TEST_POSTGRES OUTBOX_TEST_MARIADB
	export CI=true OUTBOX_TEST_VERSION=$3
	SECONDS=0
	{
		verbose=-test.v tests testutil/testdb "$2" ServerVersion || failed=1
		tests testutil "$2" Conformance || failed=1
		tests . "$2" "${promises[@]}" || failed=1
		tests scenarios "$2" "${scenarios[@]}" || failed=1
		tests admin "$2" "${pages[@]}" || failed=1
		[ "$2" != postgres ] || tests pgnotify '.*' CreatedElsewhere || failed=1
	} >"$log" 2>&1 </dev/null
	local version
	version=$(sed -n 's/.*server version: //p' "$log")
	if [ $failed = 0 ] && [ -n "$version" ]; then
		echo "$1 $version: ok, $SECONDS s"
	else
		cat "$log"
		echo "$1 ${version:-${3%.}}: failed"
		touch "$work/failed"
	fi
}

# server tests on one server, beside at most two others: the tests mostly wait.
server() { # name database version function arguments…; the function prints the directory of the programs
	local name=$1 database=$2 version=$3 programs
	shift 3
	if ! programs=$("$@"); then
		if [ -n "${CI:-}" ]; then
			echo "$name ${version%.}: failed: it could not be had"
			touch "$work/failed"
		else
			echo "$name ${version%.}: skipped: it could not be had"
		fi
		return
	fi
	[ "$(jobs -pr | wc -l)" -lt 3 ] || wait -n || true
	set -m # a process group of its own, which an interrupt reaches
	PATH=${programs:+$programs:}$PATH run "$name" "$database" "$version" &
	jobs+=($!)
	set +m
}

compile testutil/testdb ServerVersion
compile testutil Conformance
compile . "${promises[@]}"
compile scenarios "${scenarios[@]}"
compile admin "${pages[@]}"
compile pgnotify CreatedElsewhere

server PostgreSQL postgres 12. postgres_of 12.22.0-beta.15
server PostgreSQL postgres 18. postgres_of 18.4.0-beta.17
server MariaDB mariadb 10.11. mariadb_of 10.11 bookworm
server MariaDB mariadb 11.8. mariadb_of 11.8 trixie
server MySQL mysql "" need_mysql
wait
[ ! -e "$work/failed" ]
