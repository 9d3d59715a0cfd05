package commitwatch

import (
	"context"
	"database/sql"
	"fmt"
	"iter"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	_ "github.com/mattn/go-sqlite3"
)

func openSQLite(t *testing.T) *sql.DB {
	t.Helper()
	pool, err := sql.Open("sqlite3", "file:"+filepath.ToSlash(filepath.Join(t.TempDir(), "watch.db"))+"?_journal_mode=WAL")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pool.Close() })
	return pool
}

func begin(t *testing.T, pool *sql.DB) *sql.Tx {
	t.Helper()
	tx, err := pool.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tx.Rollback() })
	return tx
}

func commit(t *testing.T, tx *sql.Tx) {
	t.Helper()
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
}

// in yields tasks of one partition.
func in(partition string, ids ...string) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for _, id := range ids {
			if !yield(id, partition) {
				return
			}
		}
	}
}

func watcher(t *testing.T) *Watcher[string] {
	var w Watcher[string]
	w.Activate()
	t.Cleanup(w.Deactivate)
	return &w
}

func (w *Watcher[P]) expectPending(t *testing.T, transactions, tasks int) {
	t.Helper()
	if tx, n := w.Pending(); tx != transactions || n != tasks {
		t.Errorf("%d transactions and %d tasks are watched, want %d and %d", tx, n, transactions, tasks)
	}
}

// look polls until every transaction that was asked has answered: a busy machine may need longer
// than a poll waits.
func (w *Watcher[P]) look(now time.Time) (ask bool, next time.Time) {
	ask, next = w.poll(now)
	for _, t := range w.byTx {
		for t.asking.Load() {
			runtime.Gosched()
		}
		if t.found.Load() && !t.ended {
			t.next = now
			again, then := w.poll(now)
			return ask || again, then
		}
	}
	return ask, next
}

// drain polls as Watch does, on a clock of its own, until nothing is watched. It counts how often
// the database was to be asked.
func (w *Watcher[P]) drain(t *testing.T, now time.Time) (asked int) {
	t.Helper()
	for range 1000 {
		ask, next := w.look(now)
		if ask {
			asked++
		}
		if next.IsZero() {
			if len(w.byTx) != 0 || len(w.byTask) != 0 || !w.dueAt.IsZero() {
				t.Fatalf("nothing to poll, but %d transactions and %d tasks are left", len(w.byTx), len(w.byTask))
			}
			return asked
		}
		now = next
	}
	t.Fatal("the polls do not end")
	return 0
}

func TestTransactionIsWatchedUntilItsEnd(t *testing.T) {
	for name, end := range map[string]func(*sql.Tx) error{"commit": (*sql.Tx).Commit, "rollback": (*sql.Tx).Rollback} {
		t.Run(name, func(t *testing.T) {
			w, tx := watcher(t), begin(t, openSQLite(t))
			w.Created(tx, in("p", "a"))
			w.Created(tx, in("p", "b"))
			w.expectPending(t, 1, 2)
			now := time.Now()
			for range 50 {
				ask, next := w.poll(now)
				if ask || next.IsZero() {
					t.Fatalf("in the open transaction: ask %v, next %v", ask, next)
				}
				now = next
			}
			if err := end(tx); err != nil {
				t.Fatal(err)
			}
			if n := w.drain(t, now); n == 0 || n > len(afterCommit) {
				t.Errorf("the database was to be asked %d times", n)
			}
		})
	}
}

func TestPartitionsOfWhatIsDue(t *testing.T) {
	w := watcher(t)
	w.Created(nil, in("mail", "a", "b"))
	w.Created(nil, in("sms", "c"))
	w.look(time.Now())
	due := w.takeDue()
	slices.Sort(due)
	if !slices.Equal(due, []string{"mail", "sms"}) {
		t.Errorf("in %v", due)
	}
	w.drain(t, time.Now())
	w.takeDue()
	w.Created(nil, in("mail", "d"))
	w.Created(nil, in("", "e"))
	w.look(time.Now())
	if due := w.takeDue(); due != nil {
		t.Errorf("in %v, though one partition is not known", due)
	}
}

func TestClaimedTasksAreNotWatched(t *testing.T) {
	w, tx := watcher(t), begin(t, openSQLite(t))
	w.Created(tx, in("p", "a", "b"))
	commit(t, tx)
	if ask, _ := w.look(time.Now().Add(time.Second)); !ask {
		t.Error("the commit was not seen")
	}
	w.Claimed(slices.Values([]string{"a", "b", "of another process"}))
	w.expectPending(t, 0, 0)
}

// The first claims of a transaction may come before the watcher has seen its end.
func TestClaimBeforeTheEndWasSeen(t *testing.T) {
	w, tx := watcher(t), begin(t, openSQLite(t))
	w.Created(tx, in("p", "a"))
	commit(t, tx)
	w.Claimed(slices.Values([]string{"a"}))
	w.expectPending(t, 1, 0)
	if n := w.drain(t, time.Now()); n != 0 {
		t.Errorf("the database was to be asked %d times for tasks that are claimed", n)
	}
}

func TestWithoutATransactionItIsAskedAtOnce(t *testing.T) {
	w := watcher(t)
	w.Created(nil, in("p", "a"))
	if ask, _ := w.poll(time.Now()); !ask {
		t.Error("the database is not asked")
	}
	w.drain(t, time.Now())
}

func TestStartTimes(t *testing.T) {
	t.Run("committed", func(t *testing.T) {
		w, now := watcher(t), time.Now()
		w.CreatedFor(nil, time.Hour)
		w.CreatedFor(nil, time.Minute)
		if ask, next := w.poll(now.Add(2 * time.Second)); ask || next.Before(now.Add(50*time.Second)) || next.After(now.Add(time.Minute+time.Second)) {
			t.Errorf("ask %v, next in %v", ask, next.Sub(now))
		}
		if n := w.drain(t, now.Add(2*time.Hour)); n == 0 {
			t.Error("the database was not to be asked")
		}
	})
	t.Run("in a transaction", func(t *testing.T) {
		w, tx := watcher(t), begin(t, openSQLite(t))
		w.CreatedFor(tx, time.Hour)
		now := time.Now()
		if ask, _ := w.poll(now); ask || !w.dueAt.IsZero() || len(w.byTx) != 1 {
			t.Error("a start time counts before the commit")
		}
		commit(t, tx)
		if ask, next := w.look(now.Add(time.Second)); ask || len(w.byTx) != 0 || next.Before(now.Add(59*time.Minute)) {
			t.Errorf("ask %v, next in %v", ask, next.Sub(now))
		}
	})
}

func TestWithoutADispatcherNothingIsKept(t *testing.T) {
	var w Watcher[string]
	tx := begin(t, openSQLite(t))
	w.Created(tx, in("p", "a"))
	w.CreatedFor(nil, time.Minute)
	w.Activate()
	w.expectPending(t, 0, 0)
	w.Created(tx, in("p", "b"))
	w.CreatedFor(nil, time.Minute)
	w.Deactivate()
	w.expectPending(t, 0, 0)
	if !w.dueAt.IsZero() {
		t.Error("a start time is kept")
	}
}

func TestLargeBatchIsKeptInPart(t *testing.T) {
	w, tx := watcher(t), begin(t, openSQLite(t))
	ids := map[string]string{}
	for i := range 10 * maxTasks {
		ids[fmt.Sprint(i)] = fmt.Sprint("p", i%3)
	}
	w.Created(tx, maps.All(ids))
	w.Created(tx, in("another", "a"))
	w.expectPending(t, 1, maxTasks)
	commit(t, tx)
	w.look(time.Now().Add(time.Second))
	if due := w.takeDue(); len(due) != 4 {
		t.Errorf("in %v", due)
	}
}

// An application that never ends a transaction must not be polled at the speed of light.
func TestOpenTransactionIsPolledMoreAndMoreSeldom(t *testing.T) {
	w, tx := watcher(t), begin(t, openSQLite(t))
	w.Created(tx, in("p", "a"))
	polls, now := 0, time.Now()
	for end := now.Add(time.Minute); now.Before(end); polls++ {
		_, now = w.poll(now)
	}
	if polls > 1000 {
		t.Errorf("%d polls within a minute", polls)
	}
}

// unequal is a transaction that cannot be told from others.
type unequal struct{ _ []int }

// mute is one that does not tell its end.
type mute struct{ _ int }

// rude panics when it is asked.
type rude struct{ _ int }

func (*rude) StmtContext(context.Context, *sql.Stmt) *sql.Stmt { panic("of the transaction") }

func TestForeignTransactions(t *testing.T) {
	t.Run("that cannot be compared", func(t *testing.T) {
		w := watcher(t)
		w.Created(unequal{}, in("p", "a"))
		w.expectPending(t, 0, 0)
		w.CreatedFor(unequal{}, time.Minute)
		if w.dueAt.IsZero() {
			t.Error("its start time is lost")
		}
	})
	t.Run("that do not tell", func(t *testing.T) {
		w := watcher(t)
		w.Created(&mute{}, in("p", "a"))
		if n := w.drain(t, time.Now()); n < 3 || n > 30 {
			t.Errorf("the database was to be asked %d times", n)
		}
	})
	t.Run("that panic", func(t *testing.T) {
		w := watcher(t)
		w.Created(&rude{}, in("p", "a"))
		if n := w.drain(t, time.Now()); n == 0 {
			t.Error("the database was not to be asked")
		}
	})
}

func TestWatch(t *testing.T) {
	w, tx := watcher(t), begin(t, openSQLite(t))
	ctx, cancel := context.WithCancel(t.Context())
	woken, ended := make(chan []string, 100), make(chan struct{})
	go func() {
		defer close(ended)
		w.Watch(ctx, func(partitions []string) { woken <- partitions })
	}()
	w.Created(tx, in("p", "a"))
	select {
	case <-woken:
		t.Error("before the commit")
	case <-time.After(50 * time.Millisecond):
	}
	commit(t, tx)
	select {
	case got := <-woken:
		if !slices.Equal(got, []string{"p"}) {
			t.Errorf("in %v", got)
		}
	case <-time.After(30 * time.Second):
		t.Error("not within 30 s of the commit")
	}
	cancel()
	<-ended
}
