/* The life of one task in Promela, for spin: claim, run, finish, heartbeat, burial, take-over. `make model` checks it, with
 * and without each guard; docs/reliability.md has what came out.
 *
 * Modelled: processes that pause at any point, since everything interleaves; that are killed, lose the reply to a claim, or
 * are declared dead while they live on, become a new incarnation, and finish late; a finish whose statement has locked the
 * row and whose COMMIT comes later, or never; two observers that take over at once, each with the snapshot that its
 * statement began with, then the lock, then the second look; failures, attempts and the crash cap. Handlers are ordinary,
 * or transactional (-DTX=1).
 *
 * Not modelled: time (that a process stood still for a limit is a budget of pauses), cancelled contexts, groups of outcomes,
 * replies to COMMIT that are lost, parking, more than one task. TestLoop has these.
 *
 * A guard is removed with -DNO_name.
 */

#ifndef TX
#define TX 0
#endif
#define ATTEMPTS 2	/* MaxAttempts */
#define CAP 2		/* maxCrashes, which is 3: fewer states */
#define NODES 2
#ifndef KILLS
#define KILLS 1		/* budgets, which make every execution end */
#endif
#ifndef PAUSES
#define PAUSES 1	/* long enough to be taken for dead */
#endif
#ifndef LOST
#define LOST 1		/* replies to claims */
#endif
#ifndef FAILURES
#define FAILURES 1
#endif
#ifndef BEATS
#define BEATS 1
#endif
#define IDS (NODES + KILLS + PAUSES + 1)	/* incarnations, from 1 */

mtype = { pending, running, gone };

/* the task's row, and who has locked it */
mtype state = pending;
byte version = 1, owner, attempt, uncounted, crashes;
bool locked;

byte history;		/* rows */
bool success;
byte effects, runs;	/* what handlers did */

/* processes by incarnation: the row and its count of heartbeats; whether it was killed; how many runs it
 * has in slots */
bool alive[IDS], dead[IDS];
byte known[IDS], beats[IDS], ids;

byte kills = KILLS, pauses = PAUSES, lost = LOST, failures = FAILURES, beating = BEATS;

#ifdef NO_VERSION
#define fence(v) (state == running)
#else
#define fence(v) (state == running && version == v)
#endif
#ifdef NO_RAISE
#define raise skip
#else
#define raise version++
#endif
#ifdef NO_ROW
#define row(i) true
#else
#define row(i) alive[i]
#endif
#ifdef NO_BEATS
#define still(i, n) true
#else
#define still(i, n) (beats[i] == n)
#endif
#ifdef NO_KNOWN
#define stray(i) true
#else
#define stray(i) (known[i] == 0)
#endif

inline toHistory(how) {
	history++;
	assert(history == 1);	/* L: never twice */
	success = how;
	state = gone
}

inline toPending(free) {
	state = pending;
	uncounted = uncounted + free;
	owner = 0;
	raise
}

/* a run, in a slot of incarnation i, of the claim that left version v */
proctype Run(byte i; byte v) {
	bool ok;
	if
	:: dead[i] -> goto out
	:: else
	fi;
	atomic {
		runs++;
		assert(TX || runs <= ATTEMPTS)	/* N */
#ifdef NO_ATOMIC
		;
		if :: TX -> effects++ :: else fi
#endif
	};
	if
	:: ok = true
	:: atomic { failures > 0 -> failures--; ok = false }
	fi;
#ifdef NO_SLOT
	known[i]--;
#endif
	/* the finishing statement */
	if
	:: dead[i] -> goto out
	:: atomic {
		!locked ->
		if
		:: fence(v) -> locked = true
		:: else -> goto out	/* the claim is lost */
		fi
	   }
	fi;
	/* its COMMIT, which a process that is killed may have sent, or not */
	if
	:: atomic { dead[i] -> locked = false; goto out }
	:: atomic {
		assert(version == v && owner == i);	/* F: only the current claim writes */
		if
		:: ok ->
#ifndef NO_ATOMIC
			if :: TX -> effects++ :: else fi;
#endif
			toHistory(true)
		:: !ok && attempt - uncounted >= ATTEMPTS -> toHistory(false)
		:: else -> toPending(0)
		fi;
		locked = false
	   }
	fi;
out:	atomic {
#ifndef NO_SLOT
		known[i]--;
#endif
		ok = false; i = 0; v = 0	/* zeroes: fewer states */
	}
}

proctype Node() {
	byte i;
begin:	atomic { ids++; i = ids; alive[i] = true };
	do
	:: atomic {	/* claim */
		state == pending && !locked && row(i) ->
		assert(alive[i]);	/* or its task would be an orphan at once */
		state = running;
		owner = i;
		attempt++;
		raise;
		if
		:: known[i]++; run Run(i, version)
		:: lost > 0 -> lost--	/* nobody knows that it is ours */
		fi
	   }
	:: atomic {	/* reclaim */
		state == running && owner == i && !locked && stray(i) -> toPending(1)
	   }
	:: atomic { alive[i] && beating > 0 -> beating--; beats[i]++ }
	:: atomic { !alive[i] -> goto begin }	/* the next beat shows it; the run goes on */
	:: atomic { kills > 0 -> kills--; dead[i] = true; goto begin }
	:: history > 0 -> break
	od
}

proctype Observer() {
	byte i, n, snap;
	do
	:: atomic {	/* look at a process */
		(pauses > 0 || KILLS > kills) && history == 0 ->
		i = 1;
		do
		:: i < ids -> i++
		:: alive[i] && (dead[i] || pauses > 0) -> n = beats[i]; break
		:: i == ids && !(alive[i] && (dead[i] || pauses > 0)) -> goto again
		od
	   };
	   atomic {	/* a limit later */
		if
		:: alive[i] && still(i, n) && (dead[i] || pauses > 0) ->
			assert(beats[i] == n);	/* nobody is buried who has beaten */
			if :: !dead[i] -> pauses-- :: else fi;
			alive[i] = false
		:: else
		fi;
again:		i = 0; n = 0
	   }
	:: atomic {	/* the take-over's statement begins */
		state == running && !alive[owner] ->
		for (i : 1 .. ids) {
			if :: alive[i] -> snap = snap | (1 << i) :: else fi
		}
		i = 0
	   };
	   atomic {	/* locks what is still running, by the row's last version, and an orphan, by the snapshot */
		if
		:: !locked && state == running && !(snap & (1 << owner)) -> locked = true; n = version
		:: else -> snap = 0; goto next
		fi
	   };
#ifndef NO_LOOK
	   atomic {
		if
		:: alive[owner] -> locked = false; snap = 0; n = 0; goto next
		:: else
		fi
	   };
#endif
	   atomic {
		assert(!alive[owner] && version == n);	/* nobody who lives loses a claim */
		if
#ifdef NO_CAP
		:: TX -> crashes++; toPending(1)
#else
		:: TX && crashes + 1 >= CAP -> crashes++; toHistory(false)
		:: TX && crashes + 1 < CAP -> crashes++; toPending(1)
#endif
#ifdef NO_COUNT
		:: !TX -> toPending(1)
#else
		:: !TX && attempt - uncounted >= ATTEMPTS -> toHistory(false)
		:: !TX && attempt - uncounted < ATTEMPTS -> toPending(0)
#endif
		fi;
		assert(crashes <= CAP && (state == gone || crashes < CAP));
		locked = false; snap = 0; n = 0
	   };
next:	   skip
	:: history > 0 -> break
	od
}

init {
	atomic { run Node(); run Node(); run Observer(); run Observer() };
	timeout ->
	assert(history == 1);				/* L: never lost */
	assert(!TX || effects == (success -> 1 : 0))	/* E */
}
