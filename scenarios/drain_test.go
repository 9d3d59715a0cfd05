package scenarios_test

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil"
)

// failing is a test that has a context and fails; what it would print is kept.
type failing struct {
	testing.TB
	ctx  context.Context
	said string
}

func (f *failing) Helper()                  {}
func (f *failing) Context() context.Context { return f.ctx }
func (f *failing) Errorf(format string, args ...any) {
	f.said += fmt.Sprintf(format, args...) + "\n"
}

func (f *failing) Fatalf(format string, args ...any) {
	f.Errorf(format, args...)
	runtime.Goexit()
}

// What a test asks of a database that does not answer ends with its context, and fails that test.
func TestTestutilReturnsSoonAfterItsContext(t *testing.T) {
	each(t, func(t *testing.T, d database, _ string) {
		for name, stall := range d.stalls() {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				through, begin := stall(t, d.dsn(t))
				db := d.open(t, through, nil)
				p := dbtest.Install(t, db, quick(func(o *outbox.Options) { o.Heartbeat, o.HeartbeatLimit = 0, 0 }), func(p *outbox.Plugin) {
					p.Handle("ordinary", fine)
				})
				dbtest.Create(t, db, "ordinary", nil)
				begin(pool(t, db))
				said := make(chan string, 10)
				calls := map[string]func(context.Context) error{}
				call := func(name string, what func(testing.TB, *gorm.DB)) {
					calls[name] = func(ctx context.Context) error {
						f := &failing{TB: t, ctx: ctx}
						defer func() { said <- name + ": " + f.said }()
						what(f, db.WithContext(ctx))
						return nil
					}
				}
				call("RequireCreated", func(t testing.TB, db *gorm.DB) { testutil.RequireCreated(t, db, "another", nil) })
				call("RequireNotCreated", func(t testing.TB, db *gorm.DB) { testutil.RequireNotCreated(t, db, "ordinary", nil) })
				call("Drain", func(t testing.TB, _ *gorm.DB) { testutil.Drain(t, p) })
				returnSoon(t, calls)
				for range calls {
					select {
					case line := <-said:
						t.Log(line)
					case <-time.After(time.Second):
					}
				}
			})
		}
	})
}
