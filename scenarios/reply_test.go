package scenarios_test

import (
	"context"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// lostReplies are statements of a run whose reply is lost, with or without their having taken
// effect.
var lostReplies = []struct {
	name, kind string
	parts      []string // of the statement
	limit      time.Duration
}{
	{"claim", "ordinary", []string{"SET state = 'running'"}, 0},
	{"outcome", "ordinary", []string{`DELETE FROM "outbox_tasks"`, "version"}, 0},
	{"begin of a run", "transactional", []string{"begin"}, 0},
	{"savepoint of a run", "transactional", []string{"savepoint outbox_run"}, 0},
	{"effect of a run", "transactional", []string{"INSERT INTO", "effects"}, 3 * time.Second},
	{"release of a run", "transactional", []string{"release savepoint outbox_run"}, 0},
	{"move of a run", "transactional", []string{`DELETE FROM "outbox_tasks"`, "version"}, 0},
	{"commit of a run", "transactional", []string{"commit"}, 0},
	{"heartbeat", "ordinary", []string{"beats = beats + 1"}, 0},
}

// A connection fails at each statement of a run, in each way. One process lives through it: nothing
// is lost, nothing is done twice, and it goes on.
func TestConnectionFailsAtEachStatement(t *testing.T) {
	servers(t, func(t *testing.T, d database, _ string) {
		for how, a := range map[string]action{"cut": cut, "reply lost": dropReply, "hole": hole, "half open": halfOpen} {
			for _, r := range lostReplies {
				t.Run(how+"/"+r.name, func(t *testing.T) {
					t.Parallel()
					// A server whose client has gone without a word keeps the locks of its
					// transaction, until this.
					px, through := startProxy(t, d, d.dsn(t)+map[string]string{
						"postgres": "&idle_in_transaction_session_timeout=2000", "mariadb": "&idle_transaction_timeout=2", "mysql": "&wait_timeout=2"}[d.name])
					db := d.open(t, through, nil)
					p := dbtest.Install(t, db, quick(patient, func(o *outbox.Options) { o.HeartbeatLimit = 3 * time.Second }), func(p *outbox.Plugin) {
						effectHandlers(p, db)
					})
					dbtest.Start(t, p)
					dbtest.Ended(t, db, dbtest.Create(t, db, r.kind, nil).ID) // it is running, and its connections are open
					happened := px.once(a, d.words(r.parts)...)
					// Where the handler was in the middle of it, it is the handler's own error and
					// time.
					task := dbtest.Create(t, db, r.kind, nil, outbox.MaxAttempts(2), outbox.Timeout(r.limit))
					dbtest.Receive(t, happened)
					h := dbtest.Ended(t, db, task.ID)
					if n := effects(t, db, task.ID); h.Status != outbox.StatusSuccess || n != 1 || h.Attempt-h.Uncounted > 2 {
						t.Errorf("%d effects, %+v: %s", n, h, text(h))
					}
					if next := dbtest.Ended(t, db, dbtest.Create(t, db, r.kind, nil).ID); next.Status != outbox.StatusSuccess {
						t.Errorf("the next task: %+v: %s", next, text(next))
					}
				})
			}
		}
	})
}

// The same without a network: the driver loses the reply to a statement that has taken effect.
func TestReplyLostInTheDriver(t *testing.T) {
	each(t, func(t *testing.T, d database, _ string) {
		for _, r := range lostReplies {
			if r.name == "begin of a run" {
				continue // the driver begins it
			}
			t.Run(r.name, func(t *testing.T) {
				t.Parallel()
				var tp tap
				dsn := d.dsn(t)
				db := d.open(t, dsn, &tp)
				plain := d.open(t, dsn, nil)
				dbtest.Install(t, plain, quick(), func(p *outbox.Plugin) { effectHandlers(p, plain) }) // creates and looks
				p := dbtest.Install(t, db, quick(patient, func(o *outbox.Options) { o.HeartbeatLimit = 3 * time.Second }), func(p *outbox.Plugin) {
					effectHandlers(p, db)
				})
				dbtest.Start(t, p)
				dbtest.Ended(t, plain, dbtest.Create(t, plain, r.kind, nil).ID)
				var lost atomic.Bool
				tp.set(func(_ context.Context, s step) error {
					for _, part := range d.words(r.parts) {
						statement := s.text
						if part != "commit" {
							statement, _, _ = strings.Cut(statement+"COMMIT; ", "COMMIT; ")
						}
						if !strings.Contains(strings.ToLower(statement), strings.ToLower(part)) {
							return nil
						}
					}
					if s.after && lost.CompareAndSwap(false, true) {
						return io.ErrUnexpectedEOF
					}
					return nil
				})
				task := dbtest.Create(t, plain, r.kind, nil, outbox.MaxAttempts(2))
				h := dbtest.Ended(t, plain, task.ID)
				dbtest.Eventually(t, "a reply is lost", lost.Load)
				if n := effects(t, plain, task.ID); h.Status != outbox.StatusSuccess || n != 1 || h.Attempt-h.Uncounted > 2 {
					t.Errorf("%d effects, %+v: %s", n, h, text(h))
				}
			})
		}
	})
}

// The caller's COMMIT gets no reply: the caller has an error, and the id tells what became of it.
func TestReplyToTheCreatorsCommitIsLost(t *testing.T) {
	servers(t, func(t *testing.T, d database, dsn string) {
		px, through := startProxy(t, d, dsn)
		creator := d.open(t, through, nil)
		dbtest.Install(t, creator, quick(), func(p *outbox.Plugin) { effectHandlers(p, creator) })
		db := d.open(t, dsn, nil)
		p := dbtest.Install(t, db, quick(patient), func(p *outbox.Plugin) { effectHandlers(p, db) })
		dbtest.Start(t, p)
		for _, tt := range []struct {
			name string
			a    action
			runs int64
		}{{"it has arrived", dropReply, 1}, {"it has not", cut, 0}} {
			t.Run(tt.name, func(t *testing.T) {
				happened := px.once(tt.a, "commit")
				var task *outbox.TaskModel
				err := creator.Transaction(func(tx *gorm.DB) (err error) {
					task, err = outbox.Create(tx, "ordinary", nil)
					return err
				})
				dbtest.Receive(t, happened)
				if err == nil || task == nil {
					t.Fatalf("the commit had no reply, but: %v, %+v", err, task)
				}
				if tt.runs > 0 {
					dbtest.Ended(t, db, task.ID)
				}
				dbtest.Ended(t, db, dbtest.Create(t, db, "ordinary", nil).ID)
				waiting, past, err := outbox.Lookup(creator, task.ID)
				if n := effects(t, db, task.ID); n != tt.runs || waiting != nil || (past != nil) != (tt.runs > 0) {
					t.Errorf("%d effects, %+v, %+v, %v", n, waiting, past, err)
				}
			})
		}
	})
}

// Only the heartbeat's connection fails: the handlers are told, another process takes over, and the
// late outcome is refused.
func TestOnlyTheHeartbeatFails(t *testing.T) {
	servers(t, func(t *testing.T, d database, _ string) {
		for how, a := range map[string]action{"cut": cut, "hole": hole} {
			t.Run(how, func(t *testing.T) {
				t.Parallel()
				dsn := d.dsn(t)
				px, through := startProxy(t, d, dsn)
				db := d.open(t, through, nil)
				started, told, refused, leaving := make(chan string, 10), make(chan error, 10), make(chan error, 10), make(chan struct{})
				opts := quick(func(o *outbox.Options) {
					o.HeartbeatLimit = 3 * time.Second
					o.Hooks = []outbox.Hooks{finishHook{told: func(_ *outbox.TaskModel, f outbox.Outcome) { refused <- f.Err }}}
				})
				p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
					p.Handle("ordinary", func(ctx context.Context) error {
						task, _ := outbox.TaskFrom(ctx)
						started <- task.ID
						<-ctx.Done()
						told <- context.Cause(ctx)
						<-leaving
						return nil
					}, outbox.Idempotent())
				})
				dbtest.Start(t, p)
				other := d.open(t, dsn, nil)
				task := dbtest.Create(t, db, "ordinary", nil)
				dbtest.Receive(t, started)
				px.set(func(statement string) action {
					if strings.Contains(statement, "beats = beats + 1") {
						return a
					}
					return pass
				})
				if err := dbtest.Receive(t, told); err == nil || !strings.Contains(err.Error(), outbox.ErrClaimLost.Error()) {
					t.Errorf("its context ended with %v", err)
				}
				second := dbtest.Install(t, other, quick(func(o *outbox.Options) { o.HeartbeatLimit = 3 * time.Second }), func(p *outbox.Plugin) {
					p.Handle("ordinary", func(ctx context.Context) error { return leave(ctx, other) }, outbox.Idempotent())
				})
				dbtest.Start(t, second)
				h := dbtest.Ended(t, other, task.ID)
				close(leaving)
				if err := dbtest.Receive(t, refused); err == nil || !strings.Contains(err.Error(), outbox.ErrClaimLost.Error()) {
					t.Errorf("its late outcome: %v", err)
				}
				again := dbtest.Ended(t, other, task.ID)
				if n := effects(t, other, task.ID); n != 1 || h.Status != outbox.StatusSuccess || h.Crashes != 1 || again.Version != h.Version {
					t.Errorf("%d effects, %+v, then %+v", n, h, again)
				}
			})
		}
	})
}
