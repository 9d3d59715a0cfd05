package outbox

import (
	"context"
	"database/sql"
	"fmt"
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
		// Not ctx's transaction, or its end would leave a connection with the lock on it in the pool.
		err := s.inTx(context.WithoutCancel(ctx), func(tx *sql.Tx) error {
			if err := s.d.Check(ctx, tx); err != nil {
				return err
			}
			if err := s.d.Lock(ctx, tx); err != nil {
				return err
			}
			defer s.d.Unlock(context.WithoutCancel(ctx), tx)
			version, err := s.version(ctx, tx)
			if err != nil || version == dialect.Version {
				return err
			}
			if version > dialect.Version {
				return fmt.Errorf("%w: the tables are of version %d, newer than this program's %d", ErrSchema, version, dialect.Version)
			}
			for _, statement := range s.d.Schema() {
				if _, err := tx.ExecContext(ctx, statement); err != nil {
					return fmt.Errorf("%w\n%s", err, statement)
				}
			}
			return nil
		})
		class := dialect.Classify(err)
		if err == nil || class != dialect.Busy && class != dialect.Retry || try == 200 {
			return err
		}
		if wait(ctx, 50*time.Millisecond) != nil {
			return err
		}
	}
}

// version of the tables; 0 means that there are none.
func (s *store) version(ctx context.Context, c dialect.Conn) (int, error) {
	there, err := s.d.HasTable(ctx, c)
	if err != nil || !there {
		return 0, err
	}
	var version int
	err = s.query(ctx, c, "SELECT coalesce(max(version), 0) FROM {version}", nil, func(r *sql.Rows) error {
		return r.Scan(&version)
	})
	return version, err
}

// checkSchema fails when the tables are not of this program's version.
func (s *store) checkSchema(ctx context.Context) error {
	if err := s.d.Check(ctx, s.pool); err != nil {
		return err
	}
	version, err := s.version(ctx, s.pool)
	if err != nil {
		return err
	}
	if version != dialect.Version {
		found := fmt.Sprintf("are of version %d", version)
		if version == 0 {
			found = "are missing"
		}
		return fmt.Errorf("%w: the tables %s, this program needs version %d: call Migrate, or apply what Schema(%q) prints",
			ErrSchema, found, dialect.Version, s.d.Name())
	}
	return nil
}
