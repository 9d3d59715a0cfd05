package dialect

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Check refuses connections on which a character would be changed or a time cannot be read. It also
// refuses connections of a pooler that gives each transaction another session while the driver
// keeps prepared statements in the session.
func (p *postgres) Check(ctx context.Context, c Conn) error {
	var encoding, style string
	r, err := c.QueryContext(ctx, "SELECT current_setting('client_encoding'), current_setting('DateStyle')")
	if err := each(r, err, func(r Row) error { return r.Scan(&encoding, &style) }); err != nil {
		return explainPrepared(err)
	}
	var errs []error
	if encoding != "UTF8" {
		errs = append(errs, fmt.Errorf("the session's client_encoding is %s: use client_encoding=UTF8", encoding))
	}
	// The DateStyle changes only the text of a time. The driver reads times as text when it does
	// not prepare the statement.
	if !strings.HasPrefix(style, "ISO") && !readsTimes(ctx, c) {
		errs = append(errs, fmt.Errorf("the session's DateStyle is %q, in which the driver cannot read times: use datestyle=ISO", style))
	}
	if pool, ok := c.(*sql.DB); ok && len(errs) == 0 {
		errs = append(errs, explainPrepared(checkPrepared(ctx, pool)))
	}
	return errors.Join(errs...)
}

func readsTimes(ctx context.Context, c Conn) bool {
	var at time.Time
	r, err := c.QueryContext(ctx, "SELECT timestamptz '2020-01-02 03:04:05.678901+00'")
	err = each(r, err, func(r Row) error { return r.Scan(&at) })
	return err == nil && at.Equal(time.Date(2020, 1, 2, 3, 4, 5, 678901000, time.UTC))
}

// checkPrepared executes one statement twice on one connection. Before the second time, another
// connection takes the session in which the pooler has executed the statement first: most poolers
// hand out the session that came back last.
func checkPrepared(ctx context.Context, pool *sql.DB) error {
	if pool.Stats().MaxOpenConnections == 1 {
		return nil
	}
	// Run must start even if the pool, or a pooler, has no second connection.
	limited, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	first, err := pool.Conn(limited)
	if err != nil {
		return nil
	}
	defer first.Close()
	execute := func() error {
		_, err := texts(first.QueryContext(limited, "SELECT $1::text || ' is prepared'", "it"))
		return err
	}
	if err := execute(); err != nil {
		return unprepared(err)
	}
	other, err := pool.BeginTx(limited, nil)
	if err != nil {
		return nil
	}
	defer other.Rollback()
	if _, err := other.ExecContext(limited, "SELECT 1"); err != nil {
		return unprepared(err)
	}
	return unprepared(execute())
}

// unprepared returns err if it says that the driver has prepared the statement in another session.
func unprepared(err error) error {
	var state interface{ SQLState() string }
	if errors.As(err, &state) && (state.SQLState() == "26000" || state.SQLState() == "42P05") {
		return err
	}
	return nil
}

func explainPrepared(err error) error {
	if unprepared(err) == nil {
		return err
	}
	// err is not wrapped: its class would make the library try again.
	return fmt.Errorf("a pooler in transaction mode gives each transaction another session, but the driver keeps prepared statements in one:"+
		" set default_query_exec_mode=exec in the DSN of pgx, or max_prepared_statements in PgBouncer 1.21 or later: %v", err)
}
