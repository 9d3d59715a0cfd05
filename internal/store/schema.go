package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// ErrSchema: the tables are missing or of another version.
var ErrSchema = errors.New("schema is not up to date")

// Explain adds to an error what the user can do about it.
func (s *Store) Explain(err error) error {
	if dialect.Classify(err) == dialect.Missing {
		return fmt.Errorf("%w: call Migrate, or apply what Schema(%q) prints: %w", ErrSchema, s.Dialect.Name(), err)
	}
	return err
}

// Migrate creates or updates the tables in one transaction that excludes every other migration.
func (s *Store) Migrate(ctx context.Context) error {
	for try := 1; ; try++ {
		// All of it: while a COMMIT waits for its reply, nothing else can be done on its
		// connection.
		err := s.Dialect.End(ctx, func() error { return s.migrateOnce(ctx) })
		class := dialect.Classify(err)
		if err == nil || class != dialect.Busy && class != dialect.Retry || try == 200 {
			return err
		}
		if dialect.Wait(ctx, 50*time.Millisecond) != nil {
			return err
		}
	}
}

func (s *Store) migrateOnce(ctx context.Context) (err error) {
	conn, err := s.Pool.Conn(ctx)
	if err != nil {
		return err
	}
	locked := false
	defer func() {
		if locked && s.Dialect.Unlock(ctx, conn) != nil {
			// The lock is the session's: back in the pool, it would keep the lock. Closed, it does
			// not.
			_ = conn.Raw(func(any) error { return driver.ErrBadConn })
		}
		_ = conn.Close()
	}()
	tx, err := conn.BeginTx(ctx, &sql.TxOptions{Isolation: s.Dialect.Isolation()})
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := s.Dialect.Check(ctx, tx); err != nil {
		return err
	}
	locked = true // perhaps, if the reply is lost
	if err := s.Dialect.Lock(ctx, tx); err != nil {
		return err
	}
	absent, create, version, err := s.tables(ctx, tx)
	if err != nil || version == dialect.Version && len(absent)+len(create) == 0 {
		return err
	}
	// What the tables lack that somebody else has made, as by AutoMigrate before Migrate, comes
	// last: where the schema's statements do not mend it.
	for _, statement := range append(s.Dialect.Schema(), create...) {
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

// tables compares what is there with what is needed. absent tables and create's indexes are what
// Migrate can make; whatever else differs is an error. The version is 0 where none is told.
func (s *Store) tables(ctx context.Context, c dialect.Conn) (absent, create []string, version int, err error) {
	absent, create, differs := s.Dialect.CheckTables(ctx, c)
	if differs != nil && !errors.Is(differs, dialect.ErrShape) {
		return nil, nil, 0, differs
	}
	if !slices.Contains(absent, s.names.Version) {
		if version, err = s.version(ctx, c); err != nil {
			return nil, nil, 0, err
		}
	}
	if differs != nil {
		return nil, nil, 0, fmt.Errorf("%w: %w: compare them with what Schema(%q) prints, or remove them and call Migrate", ErrSchema, differs, s.Dialect.Name())
	}
	return absent, create, version, nil
}

func (s *Store) incomplete(absent, create []string) error {
	var lacks []string
	if len(absent) > 0 {
		lacks = append(lacks, "the tables "+strings.Join(absent, ", ")+" are missing")
	}
	for _, statement := range create {
		lacks = append(lacks, "an index is missing: "+statement)
	}
	return fmt.Errorf("%w: %s: call Migrate, or apply what Schema(%q) prints", ErrSchema, strings.Join(lacks, "; "), s.Dialect.Name())
}

// version of the tables: the newest that is told. None at all means nothing: tests empty all tables
// of an application, this one too, and what is there was looked at.
func (s *Store) version(ctx context.Context, c dialect.Conn) (int, error) {
	var version int
	err := s.query(ctx, c, "SELECT coalesce(max(version), 0) FROM {version}", nil, func(r *sql.Rows) error {
		return r.Scan(&version)
	})
	if err == nil && version > dialect.Version {
		err = fmt.Errorf("%w: the tables are of version %d, newer than this program's %d", ErrSchema, version, dialect.Version)
	}
	return version, err
}

// CheckSchema fails when the tables are not what this program needs. What was compared once is not
// compared again.
func (s *Store) CheckSchema(ctx context.Context) error {
	if err := s.Dialect.Check(ctx, s.Pool); err != nil {
		return err
	}
	if s.compared.Load() {
		_, err := s.version(ctx, s.Pool)
		return s.Explain(err)
	}
	absent, create, _, err := s.tables(ctx, s.Pool)
	// A dispatcher needs no right on the audit, and of what a role has no right on some databases
	// do not tell.
	audit := s.names.Audit
	absent = slices.DeleteFunc(absent, func(table string) bool { return table == audit })
	if err == nil && len(absent)+len(create) > 0 {
		err = s.incomplete(absent, create)
	}
	s.compared.Store(err == nil)
	return err
}
