package dialect

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Check refuses connections on which a character would be changed or a time cannot be read, and
// those of a pooler that gives each transaction another session while the driver keeps prepared
// statements in it.
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
	// Only text depends on the style. The driver reads times as text when it does not prepare a
	// statement.
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

// checkPrepared executes one statement twice on one connection, the second time while another
// connection holds the session in which a pooler has executed it the first time: most poolers hand
// out first what came back last.
func checkPrepared(ctx context.Context, pool *sql.DB) error {
	if pool.Stats().MaxOpenConnections == 1 {
		return nil
	}
	// A pool, or a pooler, without a second connection must not keep Run from starting.
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

// unprepared is err if it says that the session is not the one in which the driver has prepared a
// statement.
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
	// Its own class would have it tried again.
	return fmt.Errorf("a pooler in transaction mode gives each transaction another session, but the driver keeps prepared statements in one:"+
		" set default_query_exec_mode=exec in the DSN of pgx, or max_prepared_statements in PgBouncer 1.21 or later: %v", err)
}
