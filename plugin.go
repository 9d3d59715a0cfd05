package outbox

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/robfig/cron/v3"
	"gorm.io/gorm"
	"gorm.io/gorm/schema"

	"github.com/gorm-outbox/outbox/internal/bridge"
	"github.com/gorm-outbox/outbox/internal/commitwatch"
	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/guard"
	"github.com/gorm-outbox/outbox/internal/store"
	"github.com/gorm-outbox/outbox/internal/text"
)

// pluginName is the key under which GORM keeps the plugin: one per *gorm.DB.
const pluginName = "outbox"

// Options of a plugin. Every zero value is a useful default.
type Options struct {
	// Logger gets Debug per task, Info for start and stop, Warn for what will be tried again, Error
	// for what ended as error; never arguments or results. Nil means slog.Default().
	Logger *slog.Logger

	// Concurrency is the number of slots: tasks that this process runs at a time. Zero means 10.
	//
	// Each running transactional handler holds a connection; on SQLite they run one at a time.
	Concurrency int

	// Scan says when to look for due tasks: a cron spec of five fields, or six with seconds, or
	// "@every 500ms". Empty means "@every 1s". A task is started within one scan of its start time
	// at the latest; the earliest start time that a scan saw is met to the millisecond.
	//
	// A cron spec follows this machine's clock and time zone, "@every" does not look at the clock.
	// Whatever the clock does, no scan comes later than it was to when the wait for it began.
	Scan string

	// Queues are those that this process serves. Empty means all.
	Queues []string

	// Heartbeat is how often this process proves that it is alive. Zero means 10 s.
	Heartbeat time.Duration
	// HeartbeatLimit is how long a heartbeat must have stood still for the process to be dead,
	// whereupon others take its tasks over. Zero means three Heartbeats; it must be at least that.
	HeartbeatLimit time.Duration

	// SingleProcess says that no other process dispatches on this database. Run then takes over the
	// tasks of a crashed predecessor at once, where it would else wait for HeartbeatLimit.
	//
	// Run takes a lock, which the crash of its holder releases, and fails when another process has
	// it, with that one's host and pid. A server's lock is that of a session: it keeps one
	// connection of the pool, and needs a pooler in session mode. SQLite's is a file beside the
	// database, whose name ends in "-outbox-lock".
	//
	// A process without SingleProcess, or a RunDue, that dispatches nevertheless is declared dead:
	// its claims are lost, its outcomes refused.
	SingleProcess bool

	// ShutdownGrace is how long running handlers may go on undisturbed when Run's context is done;
	// then their contexts end. Zero means 10 s, negative none.
	ShutdownGrace time.Duration
	// CancelGrace is how long a handler whose context has ended, by the shutdown or by its Timeout,
	// may take to return. Zero means 5 s, negative none.
	CancelGrace time.Duration

	// RetainSuccess is how long history keeps tasks that succeeded or were cancelled. Zero means 7
	// days, negative for ever.
	RetainSuccess time.Duration
	// RetainErrors is how long history keeps tasks that ended as error. Zero means 90 days,
	// negative for ever.
	RetainErrors time.Duration

	// Location of StartTime's wall-clock times. Nil means time.Local.
	Location *time.Location

	// MaxArgsBytes, MaxResultBytes and MaxErrorBytes limit the arguments (refused beyond), the
	// result (dropped beyond, with a note) and the error text (cut beyond), in bytes. Zero means 64
	// KiB each.
	MaxArgsBytes, MaxResultBytes, MaxErrorBytes int

	// Backoff is the pause before the next attempt of a task whose attempt, counted from 1, has
	// failed. Nil means DefaultBackoff, which also stands in when it panics or takes more than a
	// second. It must be safe for concurrent use.
	Backoff func(attempt int) time.Duration

	// ProducerOnly lets Create accept functions that are not registered in this process.
	ProducerOnly bool

	// RequireTx makes Create and CreateBatch refuse a handle that is not in a transaction, with
	// ErrNoTransaction: it finds the outer *gorm.DB that was used inside a transaction by mistake.
	// A BEGIN made by hand on a connection is not seen, so it is refused as well.
	RequireTx bool

	// Hooks are told of each task's creation, start and finish, in this order.
	Hooks []Hooks

	// Wakers carry wake-ups between processes, such as pgnotify.New(pgnotify.Options{}). Without
	// any, a task that another process created starts at the next scan; one that this process
	// created starts at once all the same.
	Wakers []Waker

	// Clock replaces the database's clock. It is for tests only: see testutil.Clock. It goes with
	// RunDue; beside a Run whose heartbeats it dates, moving it far makes that process look dead to
	// RunDue.
	Clock func() time.Time
}

// Plugin is an outbox on one database: a gorm.Plugin. Its methods are safe for concurrent use, but
// for the registration of handlers, which belongs before Run.
type Plugin struct {
	opts     Options
	schedule cron.Schedule
	err      error // bad options, reported by Initialize
	registry registry
	log      *slog.Logger
	commits  commitwatch.Watcher[dialect.Partition]
	running  atomic.Bool

	wakersFail []atomic.Bool // by Waker: its Created has failed last, and that has been logged
	badBackoff sync.Once     // it was logged

	gorm *gorm.DB // for handlers; never for the library's own statements, which callbacks could redirect

	mu    sync.Mutex
	store *store.Store // nil until Initialize
	asked time.Time    // when a caller last asked for the schema
}

// New returns a plugin for db.Use, which reports bad options, all at once.
func New(opts Options) *Plugin {
	p := &Plugin{opts: opts}
	o := &p.opts
	o.Logger = cmp.Or(o.Logger, slog.Default())
	o.Concurrency = cmp.Or(o.Concurrency, 10)
	o.Scan = cmp.Or(o.Scan, "@every 1s")
	o.Heartbeat = cmp.Or(o.Heartbeat, 10*time.Second)
	o.HeartbeatLimit = cmp.Or(o.HeartbeatLimit, 3*o.Heartbeat)
	o.ShutdownGrace = max(0, cmp.Or(o.ShutdownGrace, 10*time.Second))
	o.CancelGrace = max(0, cmp.Or(o.CancelGrace, 5*time.Second))
	o.RetainSuccess = cmp.Or(o.RetainSuccess, 7*24*time.Hour)
	o.RetainErrors = cmp.Or(o.RetainErrors, 90*24*time.Hour)
	o.Location = cmp.Or(o.Location, time.Local)
	o.MaxArgsBytes = cmp.Or(o.MaxArgsBytes, 64<<10)
	o.MaxResultBytes = cmp.Or(o.MaxResultBytes, 64<<10)
	o.MaxErrorBytes = cmp.Or(o.MaxErrorBytes, 64<<10)
	o.Clock = p.guardClock(o.Clock)
	p.log = guard.Logger(o.Logger)
	p.wakersFail = make([]atomic.Bool, len(o.Wakers))

	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	var err error
	if p.schedule, err = parseSchedule(o.Scan); err != nil {
		bad("Scan %s: %w", text.Quote(o.Scan), err)
	}
	if o.Concurrency < 0 || o.Concurrency > 100_000 {
		bad("Concurrency %d is not between 1 and 100000", o.Concurrency)
	}
	if o.Heartbeat < 10*time.Millisecond {
		bad("Heartbeat %v is below 10ms", o.Heartbeat)
	}
	if o.HeartbeatLimit < 3*o.Heartbeat {
		bad("HeartbeatLimit %v is below three Heartbeats of %v", o.HeartbeatLimit, o.Heartbeat)
	}
	for name, n := range map[string]int{"MaxArgsBytes": o.MaxArgsBytes, "MaxResultBytes": o.MaxResultBytes, "MaxErrorBytes": o.MaxErrorBytes} {
		if n < 256 || n > 64<<20 {
			bad("%s %d is not between 256 bytes and 64 MiB", name, n)
		}
	}
	for _, q := range o.Queues {
		if err := checkText(q, maxQueue); err != nil {
			bad("Queues: %w", err)
		}
	}
	for i, h := range o.Hooks {
		if h == nil {
			bad("Hooks[%d] is nil", i)
		}
	}
	for i, w := range o.Wakers {
		if w == nil {
			bad("Wakers[%d] is nil", i)
		}
	}
	if len(errs) > 0 {
		p.err = fmt.Errorf("outbox: bad options: %w", errors.Join(errs...))
	}
	return p
}

// Name is part of gorm.Plugin.
func (p *Plugin) Name() string { return pluginName }

// Initialize is part of gorm.Plugin: call db.Use(p). It binds the plugin to the database, and asks
// it in which schema the tables are, for two seconds at most. From then on every statement of the
// library names that schema, whatever search_path a session has set or database it uses. Initialize
// starts nothing. GORM calls it again for every replica of dbresolver and for a *gorm.Config that
// opens a second database; the plugin stays bound to the first.
//
// A db that was opened on a *sql.Tx creates tasks in it, while Migrate and Run use the pool behind.
// One on a *sql.Conn is refused.
func (p *Plugin) Initialize(db *gorm.DB) error {
	if p.err != nil {
		return p.err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.store != nil {
		return nil
	}
	if _, err := dialect.New(db.Dialector.Name(), names(db.NamingStrategy), p.opts.Clock); err != nil {
		return fmt.Errorf("outbox: use: %w", err)
	}
	pool, err := db.DB()
	if err != nil {
		return fmt.Errorf("outbox: use: the *gorm.DB is opened on a %T, and dispatchers need a pool, a *sql.DB: Use the plugin on the "+
			"*gorm.DB of the pool; to create tasks on this connection, take tx := db.WithContext(ctx) of that and set "+
			"tx.Statement.ConnPool: %w", base(db.ConnPool), err)
	}
	s, err := store.New(pool, db.Dialector.Name(), names(db.NamingStrategy), p.opts.Clock)
	if err != nil {
		return fmt.Errorf("outbox: use: %w", err)
	}
	// Not an error: the database may be down, or not be one yet. It is asked again when it is
	// needed.
	if !s.Placed() {
		if placed, err := s.Place(context.Background()); err == nil {
			s = placed
		}
	}
	p.store, p.gorm = s, onPool(db, pool)
	return nil
}

// onPool is the application's DB for handlers. One that was opened on a *sql.Tx, of which GORM
// tells the pool, would be of no use once that transaction is over.
func onPool(db *gorm.DB, pool *sql.DB) *gorm.DB {
	s := db.Session(&gorm.Session{NewDB: true, Context: context.Background()})
	if isTx(db.ConnPool) {
		s.Config.ConnPool, s.Statement.ConnPool = pool, pool
	}
	return s
}

// bound is the store, or an error before db.Use.
func (p *Plugin) bound() (*store.Store, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.store == nil {
		return nil, ErrNotInstalled
	}
	return p.store, nil
}

// placed is bound, with the schema known: what could not be asked at db.Use is asked now.
func (p *Plugin) placed(ctx context.Context) (*store.Store, error) {
	s, err := p.bound()
	if err != nil || s.Placed() {
		return s, err
	}
	placed, err := s.Place(ctx)
	if err != nil {
		return s, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.store.Placed() {
		p.store = placed
	}
	return p.store, nil
}

// placedForCaller is placed for a caller who may hold the pool's last connection, and must not wait
// for another. Unless the schema is known, the caller's session decides where its statements go.
func (p *Plugin) placedForCaller(ctx context.Context) (*store.Store, error) {
	s, err := p.bound()
	if err != nil || s.Placed() {
		return s, err
	}
	now := time.Now()
	p.mu.Lock()
	again := now.Sub(p.asked) > store.PlaceLimit
	if again {
		p.asked = now
	}
	p.mu.Unlock()
	if stats := s.Pool.Stats(); !again || stats.MaxOpenConnections > 0 && stats.InUse >= stats.MaxOpenConnections {
		return s, nil
	}
	s, _ = p.placed(ctx) // the caller's own statement tells what is wrong with the database
	return s, nil
}

func init() {
	bridge.Of = func(plugin any) (bridge.Plugin, error) {
		p := plugin.(*Plugin)
		s, err := p.bound()
		if err != nil {
			return bridge.Plugin{}, err
		}
		return bridge.Plugin{DB: p.gorm, Store: s, Functions: p.registry.names(), RetainSuccess: p.opts.RetainSuccess,
			RetainErrors: p.opts.RetainErrors, MaxArgs: p.opts.MaxArgsBytes}, nil
	}
}

// Migrate creates the tables, or brings them to this version; when they are up to date it does
// nothing. Any number of processes may call it at once. Schema prints what it executes.
//
// It returns soon after ctx has ended; on SQLite, a statement that waits for the file's lock first
// waits for the connection's busy timeout.
func (p *Plugin) Migrate(ctx context.Context) error {
	s, err := p.placed(ctx)
	if err == nil {
		err = s.Migrate(ctx)
	}
	if err != nil {
		return fmt.Errorf("outbox: migrate: %w", err)
	}
	return nil
}

// Schema is the SQL that Migrate executes on a database ("mysql", "postgres", "sqlite"), for tools
// that keep versioned migrations. Its names are those of the *gorm.DB's naming strategy, or GORM's
// default before db.Use.
func (p *Plugin) Schema(database string) (string, error) {
	var namer schema.Namer = schema.NamingStrategy{}
	if _, err := p.bound(); err == nil {
		namer = p.gorm.NamingStrategy
	}
	d, err := dialect.New(database, names(namer), nil)
	if err != nil {
		return "", fmt.Errorf("outbox: schema: %w", err)
	}
	return strings.Join(d.Schema(), ";\n\n") + ";\n", nil
}
