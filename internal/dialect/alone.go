package dialect

import (
	"context"
)

// This file has a lock that one process at a time can hold and that is released when its holder
// crashes: a lock of a database session, or of a file beside the database.

// SessionLocker is a Dialect that has a lock of a session.
type SessionLocker interface {
	// TryAlone takes the lock for a connection's session, or reports that another session has it.
	TryAlone(ctx context.Context, c Conn) (bool, error)
	EndAlone(ctx context.Context, c Conn) error
}

// FileLocker is a Dialect whose database is a file.
type FileLocker interface {
	// File is the database's path. It is empty for a database in memory.
	File(ctx context.Context, c Conn) (string, error)
}

func (p *postgres) TryAlone(ctx context.Context, c Conn) (bool, error) {
	got, err := texts(c.QueryContext(ctx, "SELECT CASE WHEN pg_try_advisory_lock("+postgresAlone+") THEN 'yes' ELSE '' END", p.render("{processes}")))
	return err == nil && got[0] != "", err
}

func (p *postgres) EndAlone(ctx context.Context, c Conn) error {
	_, err := texts(c.QueryContext(ctx, "SELECT CAST(pg_advisory_unlock("+postgresAlone+") AS text)", p.render("{processes}")))
	return err
}

// postgresAlone is the lock's key in this database. The number tells this lock from others.
const postgresAlone = "hashtextextended(CAST($1 AS text), 7034128519043)"

func (m *mysql) TryAlone(ctx context.Context, c Conn) (bool, error) {
	got, err := texts(c.QueryContext(ctx, "SELECT COALESCE(GET_LOCK("+mysqlLock+", 0), 0)", m.names.Processes))
	return err == nil && got[0] == "1", err
}

func (m *mysql) EndAlone(ctx context.Context, c Conn) error {
	_, err := texts(c.QueryContext(ctx, "SELECT COALESCE(RELEASE_LOCK("+mysqlLock+"), 0)", m.names.Processes))
	return err
}

func (s *sqlite) File(ctx context.Context, c Conn) (string, error) {
	schema, _ := s.names.place(s.names.Processes)
	if schema == "" {
		schema = "main"
	}
	found, err := texts(c.QueryContext(ctx, "SELECT coalesce(file, '') FROM pragma_database_list WHERE name = ?1", schema))
	if err != nil || len(found) == 0 {
		return "", err
	}
	return found[0], nil
}

// AloneName is the name of MySQL's lock, with the table as a parameter. Tests use it to find the
// session that has the lock.
const AloneName = mysqlLock
