package outbox_test

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/internal/dialect"
)

// Each statement that changes state is run against rows of every kind, and must change exactly
// those that its WHERE names.

var (
	fenceNow       = time.Now().UTC().Truncate(time.Second)
	fencePartition = []dialect.Partition{{Queue: "default", Priority: 2}}
)

// fenceRows are rows of every kind: a state, a function, a queue, a priority, due or not, of a live
// process, of a dead one or of none.
func fenceRows(t *testing.T, db *gorm.DB) map[string]outbox.TaskModel {
	t.Helper()
	for id, m := range map[string]outbox.ProcessModel{
		"alive":  {Functions: outbox.JSON(`["mine"]`)},
		"mailer": {Functions: outbox.JSON(`["theirs"]`), Queues: outbox.JSON(`["mail"]`)},
	} {
		m.ID, m.StartedAt, m.BeatAt, m.Beats = id, fenceNow, fenceNow, 1
		if err := db.Create(&m).Error; err != nil {
			t.Fatal(err)
		}
	}
	var list []outbox.TaskModel
	for _, state := range []outbox.State{outbox.StatePending, outbox.StateRunning, outbox.StateParked} {
		for _, fn := range []string{"mine", "theirs", "nobodys"} {
			for _, queue := range []string{"default", "mail"} {
				for priority := 1; priority <= 2; priority++ {
					for _, due := range []time.Duration{-time.Hour, time.Hour} {
						for _, process := range []string{"alive", "dead", ""} {
							m := outbox.TaskModel{
								ID: fmt.Sprint("task-", len(list)), Func: fn, Args: outbox.JSON("{}"), Queue: queue, Priority: priority,
								RunAt: fenceNow.Add(due), State: state, MaxAttempts: 1, Version: int64(5 + len(list)%2), CreatedAt: fenceNow,
							}
							if process != "" {
								m.ProcessID = &process
							}
							list = append(list, m)
						}
					}
				}
			}
		}
	}
	if err := db.CreateInBatches(list, 50).Error; err != nil {
		t.Fatal(err)
	}
	return tasksByID(t, db)
}

func tasksByID(t *testing.T, db *gorm.DB) map[string]outbox.TaskModel {
	t.Helper()
	var list []outbox.TaskModel
	if err := db.Find(&list).Error; err != nil {
		t.Fatal(err)
	}
	byID := map[string]outbox.TaskModel{}
	for _, m := range list {
		byID[m.ID] = m
	}
	return byID
}

func isDue(m outbox.TaskModel) bool { return m.RunAt.Before(fenceNow) }

func inPartition(m outbox.TaskModel) bool { return m.Queue == "default" && m.Priority == 2 }

// atFive are fences for all rows: right for those of version 5 that a live process runs, wrong for
// those of version 6 and those of other processes.
func atFive(rows map[string]outbox.TaskModel) (outcomes []dialect.Outcome, requeued []dialect.Requeued) {
	five := int64(5)
	for _, id := range slices.Sorted(maps.Keys(rows)) {
		outcomes = append(outcomes, dialect.Outcome{ID: id, Version: &five, Process: "alive", Status: "success"})
		requeued = append(requeued, dialect.Requeued{ID: id, Version: five, Process: "alive", DelayUS: 1e6})
	}
	return outcomes, requeued
}

func TestStatementsChangeWhatTheirFenceNames(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	claim := func(process string, limit int, repeatable ...string) func(dialect.Dialect, *sql.Tx, map[string]outbox.TaskModel) error {
		return func(d dialect.Dialect, tx *sql.Tx, _ map[string]outbox.TaskModel) error {
			return d.Claim(ctx, tx, dialect.ClaimParams{Process: process, Partitions: fencePartition, Funcs: []string{"mine"}, Repeatable: repeatable, Limit: limit},
				func(dialect.Row) error { return nil })
		}
	}
	claimShare := func(share int, until time.Time, functions ...string) func(dialect.Dialect, *sql.Tx, map[string]outbox.TaskModel) error {
		return func(d dialect.Dialect, tx *sql.Tx, _ map[string]outbox.TaskModel) error {
			partitions := append([]dialect.Partition{{Queue: "default", Priority: 1}}, fencePartition...)
			params := dialect.ClaimParams{Process: "alive", Partitions: partitions, Funcs: functions, Limit: 1000, Share: share}
			if !until.IsZero() {
				params.Until = d.Time(until)
			}
			return d.Claim(ctx, tx, params, func(dialect.Row) error { return nil })
		}
	}
	inBothPartitions := func(functions ...string) func(outbox.TaskModel) bool {
		return func(m outbox.TaskModel) bool {
			return m.State == outbox.StatePending && slices.Contains(functions, m.Func) && m.Queue == "default" && isDue(m)
		}
	}
	claimable := func(m outbox.TaskModel) bool {
		return m.State == outbox.StatePending && m.Func == "mine" && inPartition(m) && isDue(m)
	}
	claimed := func(repeatable bool) func(was, is outbox.TaskModel) bool {
		return func(was, is outbox.TaskModel) bool {
			return is.State == outbox.StateRunning && is.Attempt == was.Attempt+1 && *is.ProcessID == "alive" && is.StartedAt != nil &&
				is.Repeatable == repeatable
		}
	}
	move := func(from dialect.From, anyVersion bool) func(dialect.Dialect, *sql.Tx, map[string]outbox.TaskModel) error {
		return func(d dialect.Dialect, tx *sql.Tx, rows map[string]outbox.TaskModel) error {
			outcomes, _ := atFive(rows)
			for i := range outcomes {
				if anyVersion {
					outcomes[i].Version = nil
				}
			}
			_, err := d.Move(ctx, tx, from, outcomes)
			return err
		}
	}
	unpark := func(queues ...string) func(dialect.Dialect, *sql.Tx, map[string]outbox.TaskModel) error {
		return func(d dialect.Dialect, tx *sql.Tx, _ map[string]outbox.TaskModel) error {
			_, err := d.Unpark(ctx, tx, []string{"mine"}, queues, 1000)
			return err
		}
	}
	parked := func(m outbox.TaskModel) bool { return m.State == outbox.StateParked && m.Func == "mine" }
	many := make([]string, 500)
	for i := range many {
		many[i] = fmt.Sprint("other.", i)
	}
	many = slices.Clip(many)
	pendingAgain := func(was, is outbox.TaskModel) bool {
		return is.State == outbox.StatePending && is.RunAt.Equal(was.RunAt)
	}

	for _, tt := range []struct {
		name    string
		run     func(dialect.Dialect, *sql.Tx, map[string]outbox.TaskModel) error
		changes func(outbox.TaskModel) bool
		to      func(was, is outbox.TaskModel) bool // nil: they move to history
		count   int                                 // of the rows that may be changed; zero means all
	}{
		{"claim", claim("alive", 1000), claimable, claimed(false), 0},
		{"claim as repeatable", claim("alive", 1000, "mine"), claimable, claimed(true), 0},
		{"claim up to a limit", claim("alive", 2), claimable, claimed(false), 2},
		{"claim up to a share", claimShare(2, time.Time{}, "mine"), inBothPartitions("mine"), claimed(false), 4}, // of three in each of two
		{"claim up to an odd share", claimShare(3, time.Time{}, "mine", "theirs"), inBothPartitions("mine", "theirs"), claimed(false), 6},
		{"claim the first of each", claimShare(1, time.Time{}, "mine"), inBothPartitions("mine"), claimed(false), 2},
		{"claim the first of each, behind others", claimShare(1, time.Time{}, "theirs"), inBothPartitions("theirs"), claimed(false), 2},
		{"claim the first of each, none of them due", claimShare(1, fenceNow.Add(-2*time.Hour), "mine"),
			func(outbox.TaskModel) bool { return false }, claimed(false), 0},
		{"claim with many functions", func(d dialect.Dialect, tx *sql.Tx, _ map[string]outbox.TaskModel) error {
			return d.Claim(ctx, tx, dialect.ClaimParams{Process: "alive", Partitions: fencePartition, Funcs: append(many, "mine"), Limit: 1000},
				func(dialect.Row) error { return nil })
		}, claimable, claimed(false), 0},
		{"claim with many functions as repeatable", func(d dialect.Dialect, tx *sql.Tx, _ map[string]outbox.TaskModel) error {
			return d.Claim(ctx, tx, dialect.ClaimParams{Process: "alive", Partitions: fencePartition, Funcs: append(many, "mine"),
				Repeatable: append(many, "mine"), Limit: 1000}, func(dialect.Row) error { return nil })
		}, claimable, claimed(true), 0},
		{"claim by a process without a row", claim("dead", 1000), func(outbox.TaskModel) bool { return false }, claimed(false), 0},
		{"finish", move(dialect.FromRunning, false), func(m outbox.TaskModel) bool {
			return m.State == outbox.StateRunning && m.Version == 5 && text(m.ProcessID) == "alive"
		}, nil, 0},
		{"finish in other ways", func(d dialect.Dialect, tx *sql.Tx, rows map[string]outbox.TaskModel) error {
			outcomes, _ := atFive(rows)
			for i := range outcomes {
				outcomes[i].Status = "error"
			}
			_, err := d.Move(ctx, tx, dialect.FromRunning, outcomes)
			return err
		}, func(m outbox.TaskModel) bool {
			return m.State == outbox.StateRunning && m.Version == 5 && text(m.ProcessID) == "alive"
		}, nil, 0},
		{"finish of several processes", func(d dialect.Dialect, tx *sql.Tx, rows map[string]outbox.TaskModel) error {
			outcomes, _ := atFive(rows)
			for i := range outcomes {
				outcomes[i].Process = ""
				if p := rows[outcomes[i].ID].ProcessID; p != nil {
					outcomes[i].Process = *p
				}
			}
			_, err := d.Move(ctx, tx, dialect.FromRunning, outcomes)
			return err
		}, func(m outbox.TaskModel) bool { return m.State == outbox.StateRunning && m.Version == 5 }, nil, 0},
		{"cancel at a version", move(dialect.FromWaiting, false), func(m outbox.TaskModel) bool {
			return m.State != outbox.StateRunning && m.Version == 5
		}, nil, 0},
		{"cancel", move(dialect.FromWaiting, true), func(m outbox.TaskModel) bool { return m.State != outbox.StateRunning }, nil, 0},
		{"requeue", func(d dialect.Dialect, tx *sql.Tx, rows map[string]outbox.TaskModel) error {
			_, requeued := atFive(rows)
			_, err := d.Requeue(ctx, tx, requeued)
			return err
		}, func(m outbox.TaskModel) bool {
			return m.State == outbox.StateRunning && m.Version == 5 && text(m.ProcessID) == "alive"
		},
			func(_, is outbox.TaskModel) bool {
				return is.State == outbox.StatePending && is.ProcessID == nil && is.StartedAt == nil && !is.RunAt.Before(fenceNow.Add(time.Second))
			}, 0},
		{"park", func(d dialect.Dialect, tx *sql.Tx, _ map[string]outbox.TaskModel) error {
			_, err := d.Park(ctx, tx, append(fencePartition, dialect.Partition{Queue: "mail", Priority: 1}), 1000)
			return err
		}, func(m outbox.TaskModel) bool {
			served := m.Func == "mine" || m.Func == "theirs" && m.Queue == "mail"
			return m.State == outbox.StatePending && isDue(m) && (inPartition(m) || m.Queue == "mail" && m.Priority == 1) && !served
		}, func(_, is outbox.TaskModel) bool { return is.State == outbox.StateParked }, 0},
		{"unpark", unpark(), parked, pendingAgain, 0},
		{"unpark a queue", unpark("mail"), func(m outbox.TaskModel) bool { return parked(m) && m.Queue == "mail" }, pendingAgain, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
				d, _ := dbtest.Install(t, db, outbox.Options{}, nil).Statements()
				before := fenceRows(t, db)
				tx := db.Begin()
				defer tx.Rollback()
				if err := tt.run(d, tx.Statement.ConnPool.(*sql.Tx), before); err != nil {
					t.Fatal(err)
				}
				after := tasksByID(t, tx)
				changed, want := 0, 0
				for id, was := range before {
					is, there := after[id]
					may := tt.changes(was)
					if may {
						want++
					}
					if there && is.Version == was.Version {
						if is.State != was.State || is.Attempt != was.Attempt || text(is.ProcessID) != text(was.ProcessID) {
							t.Errorf("changed without a new version:\n%+v\n%+v", was, is)
						}
						continue
					}
					changed++
					if !may {
						t.Errorf("changed, but should not have been: %+v", was)
					}
					if there != (tt.to != nil) || there && (is.Version != was.Version+1 || !tt.to(was, is)) {
						t.Errorf("there %v: %+v", there, is)
					}
				}
				if tt.count > 0 {
					want = tt.count
				}
				if changed != want {
					t.Errorf("%d rows are changed, want %d", changed, want)
				}
				if past := dbtest.Count(t, tx, &outbox.HistoryModel{}); past != int64(len(before)-len(after)) {
					t.Errorf("%d rows of history for %d that left", past, len(before)-len(after))
				}
			})
		})
	}
}

func TestOrphansAreThoseOfNoProcess(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p := dbtest.Install(t, db, outbox.Options{}, nil)
		var want []string
		for id, m := range fenceRows(t, db) {
			if m.State == outbox.StateRunning && text(m.ProcessID) != "alive" {
				want = append(want, id)
			}
		}
		d, pool := p.Statements()
		found := 0
		if err := d.Orphans(t.Context(), pool, 1000, func(dialect.Row) error { found++; return nil }); err != nil || found != len(want) {
			t.Errorf("found %d, %v; want %d", found, err, len(want))
		}
		if db.Name() != "sqlite" { // where nothing can be locked but everything
			// A zombie's transaction, perhaps for a long time.
			zombie := db.Begin()
			defer zombie.Rollback()
			if err := zombie.Exec("UPDATE outbox_tasks SET meta = NULL WHERE id = ?", want[0]).Error; err != nil {
				t.Fatal(err)
			}
			want = want[1:]
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		got, err := p.Rescue(ctx)
		slices.Sort(got)
		if slices.Sort(want); err != nil || !slices.Equal(got, want) {
			t.Errorf("%v: took %v, want %v", err, got, want)
		}
	})
}

// reborn has a process come back at the worst moment: when the take-over has found its tasks, and
// before it has looked again.
type reborn struct {
	dialect.Dialect
	process string
}

func (r reborn) Orphans(ctx context.Context, c dialect.Conn, limit int, each func(dialect.Row) error) error {
	if err := r.Dialect.Orphans(ctx, c, limit, each); err != nil {
		return err
	}
	_, err := c.ExecContext(ctx, r.Rebind("INSERT INTO {processes} (id, host, pid, functions, slots, started_at, beat_at, beats)"+
		" VALUES ('"+r.process+"', '', 1, '[]', 1, {now}, {now}, 1)"))
	return err
}

func TestRescueLooksAgain(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p := dbtest.Install(t, db, outbox.Options{}, nil)
		dead := "dead"
		m := outbox.TaskModel{ID: "task", Func: "f", Args: outbox.JSON("{}"), Queue: "default", Priority: 2, RunAt: fenceNow,
			State: outbox.StateRunning, Attempt: 1, MaxAttempts: 1, Version: 2, CreatedAt: fenceNow, ProcessID: &dead}
		if err := db.Create(&m).Error; err != nil {
			t.Fatal(err)
		}
		var plain dialect.Dialect
		p.Intercept(func(d dialect.Dialect) dialect.Dialect { plain = d; return reborn{d, dead} })
		if got, err := p.Rescue(t.Context()); err != nil || len(got) != 0 {
			t.Errorf("took %v, %v, from a live process", got, err)
		}
		p.Intercept(func(dialect.Dialect) dialect.Dialect { return plain })
		dropProcesses(t, db)
		if got, err := p.Rescue(t.Context()); err != nil || len(got) != 1 {
			t.Errorf("took %v, %v, from a dead process", got, err)
		}
	})
}

// between does something when a take-over has found and locked its tasks, and before it writes.
type between struct {
	dialect.Dialect
	do func()
}

func (b between) Orphans(ctx context.Context, c dialect.Conn, limit int, each func(dialect.Row) error) error {
	err := b.Dialect.Orphans(ctx, c, limit, each)
	b.do()
	return err
}

// The owner of a task, which was thought dead, finishes it while the take-over is half done; so
// does a second take-over, which has seen the same dead process.
func TestRescueHalfDone(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p := dbtest.Install(t, db, outbox.Options{}, nil)
		dead, version := "dead", int64(2)
		m := outbox.TaskModel{ID: "task", Func: "f", Args: outbox.JSON("{}"), Queue: "default", Priority: 2, RunAt: fenceNow,
			State: outbox.StateRunning, Attempt: 1, MaxAttempts: 1, Version: version, CreatedAt: fenceNow, ProcessID: &dead}
		if err := db.Create(&m).Error; err != nil {
			t.Fatal(err)
		}
		type answer struct {
			ids []string
			err error
		}
		owner, other := make(chan answer, 1), make(chan answer, 1)
		once := false
		p.Intercept(func(d dialect.Dialect) dialect.Dialect {
			return between{d, func() {
				if once {
					return
				}
				once = true
				go func() {
					ids, err := p.Finish(t.Context(), dialect.Outcome{ID: m.ID, Version: &version, Process: dead, Status: "success"})
					owner <- answer{ids, err}
				}()
				if _, pool := p.Statements(); !d.Serial() {
					dbtest.Eventually(t, "the owner waits for the row, or is refused", func() bool {
						if len(owner) > 0 {
							return true
						}
						var n int
						if err := pool.QueryRow(waiting[db.Name()]).Scan(&n); err != nil {
							t.Fatal(err)
						}
						return n > 0
					})
					ids, err := p.Rescue(t.Context())
					other <- answer{ids, err}
					return
				}
				go func() {
					ids, err := p.Rescue(t.Context())
					other <- answer{ids, err}
				}()
			}}
		})
		if ids, err := p.Rescue(t.Context()); err != nil || len(ids) != 1 {
			t.Errorf("the take-over got %v, %v", ids, err)
		}
		a := dbtest.Receive(t, owner)
		if a.err != nil && strings.Contains(a.err.Error(), "NOWAIT") { // MySQL's statement does not wait: the owner tries again
			a.ids, a.err = p.Finish(t.Context(), dialect.Outcome{ID: m.ID, Version: &version, Status: "success"})
		}
		if a.err != nil || len(a.ids) != 0 {
			t.Errorf("the owner finished %v, %v", a.ids, a.err)
		}
		if a := dbtest.Receive(t, other); a.err != nil || len(a.ids) != 0 {
			t.Errorf("the second take-over got %v, %v", a.ids, a.err)
		}
		if task, past, err := outbox.Lookup(db, m.ID); err != nil || past != nil || task.State != outbox.StatePending || task.Version != 3 {
			t.Errorf("%+v, %+v, %v", task, past, err)
		}
	})
}

// waiting counts the sessions that wait for a lock, by the database's name.
var waiting = map[string]string{
	"postgres": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
	// Not innodb_trx, of which a session that asks again sees the first answer.
	"mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID() AND command <> 'Sleep' AND (info LIKE '%FOR UPDATE' OR info LIKE '%FOR UPDATE /%')",
}

func TestOutcomeInDoubt(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p := dbtest.Install(t, db, outbox.Options{}, nil)
		d, pool := p.Statements()
		version, later := int64(2), int64(4)
		for _, tt := range []struct {
			name   string
			make   func(o *dialect.Outcome) // of what is written instead
			end    func(*sql.Tx) error
			landed bool
		}{
			{"committed", nil, (*sql.Tx).Commit, true},
			{"rolled back", nil, (*sql.Tx).Rollback, false},
			{"another version", func(o *dialect.Outcome) { o.Version = nil }, (*sql.Tx).Commit, false},
			{"another process", func(o *dialect.Outcome) { o.Process = "after a failover" }, (*sql.Tx).Commit, false},
			{"another status", func(o *dialect.Outcome) { o.Status = "error" }, (*sql.Tx).Commit, false},
			{"another reason", func(o *dialect.Outcome) { o.Reason = "interrupted" }, (*sql.Tx).Commit, false},
		} {
			t.Run(tt.name, func(t *testing.T) {
				written := dialect.Outcome{ID: tt.name, Version: &version, Process: "alive", Status: "success"}
				m := outbox.TaskModel{ID: tt.name, Func: "f", Args: outbox.JSON("{}"), Queue: "default", Priority: 2, RunAt: fenceNow,
					State: outbox.StateRunning, MaxAttempts: 1, Version: 2, CreatedAt: fenceNow, ProcessID: &written.Process}
				asked := written
				if tt.make != nil {
					tt.make(&written)
				}
				if written.Version == nil { // the row was taken over, claimed again, and finished by that claim
					written.Version, m.Version = &later, 4
				}
				if err := db.Create(&m).Error; err != nil {
					t.Fatal(err)
				}
				tx, err := pool.BeginTx(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				defer tx.Rollback()
				if moved, err := d.Move(t.Context(), tx, dialect.FromRunning, []dialect.Outcome{written}); len(moved) != 1 || err != nil {
					t.Fatal(moved, err)
				}
				// Who asks meanwhile has to wait for the transaction in question.
				type answer struct {
					yes bool
					err error
				}
				answers := make(chan answer, 1)
				go func() {
					yes, err := p.Committed(context.Background(), asked)
					answers <- answer{yes, err}
				}()
				if query, ok := waiting[db.Name()]; ok {
					dbtest.Eventually(t, "somebody waits for the row, or has an answer", func() bool {
						var n int64
						if err := db.Raw(query).Row().Scan(&n); err != nil {
							t.Fatal(err)
						}
						return n > 0 || len(answers) > 0
					})
				}
				if err := tt.end(tx); err != nil {
					t.Fatal(err)
				}
				if a := dbtest.Receive(t, answers); a.err != nil || a.yes != tt.landed {
					t.Errorf("committed: %v, %v", a.yes, a.err)
				}
				if landed, err := p.AlreadyApplied(t.Context(), asked); err != nil || landed[tt.name] != tt.landed {
					t.Errorf("landed: %v, %v", landed, err)
				}
			})
		}
	})
}
