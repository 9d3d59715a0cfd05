package outbox

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// place is the store with the schema in its names in which the pool's connections find the tables. A caller's connection is
// not asked: its session may have set another.
func (s *store) place(ctx context.Context, clock func() time.Time) (*store, error) {
	ctx, cancel := context.WithTimeout(ctx, placeLimit)
	defer cancel()
	home, err := s.d.Home(ctx, s.pool)
	if err != nil || home == "" {
		return s, err
	}
	placed := *s
	n := names(s.gorm.NamingStrategy)
	n.Schema, placed.home = home, true
	placed.d, err = dialect.New(s.d.Name(), n, clock)
	return &placed, err
}

const placeLimit = 2 * time.Second

// explain adds to an error what the user can do about it.
func (s *store) explain(err error) error {
	if dialect.Classify(err) == dialect.Missing {
		return fmt.Errorf("%w: call Migrate, or apply what Schema(%q) prints: %w", ErrSchema, s.d.Name(), err)
	}
	return err
}

// migrate creates or updates the tables in one transaction that excludes every other migration.
func (s *store) migrate(ctx context.Context) error {
	for try := 1; ; try++ {
		// All of it: while a COMMIT waits for its reply, nothing else can be done on its connection.
		err := s.d.End(ctx, func() error { return s.migrateOnce(ctx) })
		class := dialect.Classify(err)
		if err == nil || class != dialect.Busy && class != dialect.Retry || try == 200 {
			return err
		}
		if wait(ctx, 50*time.Millisecond) != nil {
			return err
		}
	}
}

func (s *store) migrateOnce(ctx context.Context) (err error) {
	conn, err := s.pool.Conn(ctx)
	if err != nil {
		return err
	}
	locked := false
	defer func() {
		if locked && s.d.Unlock(ctx, conn) != nil {
			// The lock is the session's: back in the pool, it would keep the lock. Closed, it does not.
			_ = conn.Raw(func(any) error { return driver.ErrBadConn })
		}
		_ = conn.Close()
	}()
	tx, err := conn.BeginTx(ctx, &sql.TxOptions{Isolation: s.d.Isolation()})
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := s.d.Check(ctx, tx); err != nil {
		return err
	}
	locked = true // perhaps, if the reply is lost
	if err := s.d.Lock(ctx, tx); err != nil {
		return err
	}
	absent, create, version, err := s.tables(ctx, tx)
	if err != nil || version == dialect.Version && len(absent)+len(create) == 0 {
		return err
	}
	// What the tables lack that somebody else has made, as by AutoMigrate before Migrate, comes last: where the
	// schema's statements do not mend it.
	for _, statement := range append(s.d.Schema(), create...) {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("%w\n%s", err, statement)
		}
	}
	absent, create, _, err = s.tables(ctx, tx)
	if err == nil && len(absent)+len(create) > 0 {
		err = s.incomplete(absent, create)
	}
	if err != nil {
		return err
	}
	return tx.Commit()
}

// tables compares what is there with what is needed. absent tables and create's indexes are what Migrate can make; whatever
// else differs is an error. The version is 0 where none is told.
func (s *store) tables(ctx context.Context, c dialect.Conn) (absent, create []string, version int, err error) {
	absent, create, differs := s.d.CheckTables(ctx, c)
	if differs != nil && !errors.Is(differs, dialect.ErrShape) {
		return nil, nil, 0, differs
	}
	if !slices.Contains(absent, names(s.gorm.NamingStrategy).Version) {
		if version, err = s.version(ctx, c); err != nil {
			return nil, nil, 0, err
		}
	}
	if differs != nil {
		return nil, nil, 0, fmt.Errorf("%w: %w: compare them with what Schema(%q) prints, or remove them and call Migrate", ErrSchema, differs, s.d.Name())
	}
	return absent, create, version, nil
}

func (s *store) incomplete(absent, create []string) error {
	var lacks []string
	if len(absent) > 0 {
		lacks = append(lacks, "the tables "+strings.Join(absent, ", ")+" are missing")
	}
	for _, statement := range create {
		lacks = append(lacks, "an index is missing: "+statement)
	}
	return fmt.Errorf("%w: %s: call Migrate, or apply what Schema(%q) prints", ErrSchema, strings.Join(lacks, "; "), s.d.Name())
}

// version of the tables: the newest that is told. None at all means nothing: tests empty all tables of an application, this one
// too, and what is there was looked at.
func (s *store) version(ctx context.Context, c dialect.Conn) (int, error) {
	var version int
	err := s.query(ctx, c, "SELECT coalesce(max(version), 0) FROM {version}", nil, func(r *sql.Rows) error {
		return r.Scan(&version)
	})
	if err == nil && version > dialect.Version {
		err = fmt.Errorf("%w: the tables are of version %d, newer than this program's %d", ErrSchema, version, dialect.Version)
	}
	return version, err
}

// checkSchema fails when the tables are not what this program needs. What was compared once is not compared again.
func (s *store) checkSchema(ctx context.Context, compared *atomic.Bool) error {
	if err := s.d.Check(ctx, s.pool); err != nil {
		return err
	}
	if compared.Load() {
		_, err := s.version(ctx, s.pool)
		return s.explain(err)
	}
	absent, create, _, err := s.tables(ctx, s.pool)
	// A dispatcher needs no right on the audit, and of what a role has no right on some databases do not tell.
	audit := names(s.gorm.NamingStrategy).Audit
	absent = slices.DeleteFunc(absent, func(table string) bool { return table == audit })
	if err == nil && len(absent)+len(create) > 0 {
		err = s.incomplete(absent, create)
	}
	compared.Store(err == nil)
	return err
}
