package dialect

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// mysqlLock is the name of a lock on the whole server. It may have 64 characters at most. (MySQL
// 9.7 has no MD5.)
const mysqlLock = "CONCAT('outbox ', LEFT(SHA2(CONCAT(COALESCE(DATABASE(), ''), ' ', ?), 256), 32))"

// Lock takes a lock of the session, because a CREATE TABLE commits the transaction.
func (m *mysql) Lock(ctx context.Context, c Conn) error {
	got, err := texts(c.QueryContext(ctx, "SELECT COALESCE(GET_LOCK("+mysqlLock+", 10), 0)", m.names.Version))
	if err == nil && got[0] != "1" {
		err = errMigrating
	}
	return err
}

func (m *mysql) Unlock(ctx context.Context, c Conn) error {
	_, err := texts(c.QueryContext(ctx, "SELECT COALESCE(RELEASE_LOCK("+mysqlLock+"), 0)", m.names.Version))
	return err
}

func (m *mysql) Begin(context.Context, Conn) error { return nil }

// StillIn sets a savepoint. Outside a transaction, the server forgets it at once. A deadlock rolls
// the transaction back, and a statement like CREATE TABLE commits it. After either, the next
// statements would be committed one by one.
func (m *mysql) StillIn(ctx context.Context, c Conn) bool {
	if _, err := c.ExecContext(ctx, "SAVEPOINT outbox_still_in"); err != nil {
		return true // the next statement will return the error
	}
	_, err := c.ExecContext(ctx, "RELEASE SAVEPOINT outbox_still_in")
	code, ok := driverCode(err, "mysql", "Number")
	return !ok || code != 1305
}

func (m *mysql) Home(ctx context.Context, c Conn) (string, error) {
	return home(c.QueryContext(ctx, "SELECT DATABASE()"))
}

// Check refuses connections on which a value would be cut without an error, a character would be
// lost, or a time would be moved when the application reads it through the models.
func (m *mysql) Check(ctx context.Context, c Conn) error {
	r, err := c.QueryContext(ctx, "SELECT @@sql_mode, @@character_set_client, @@sql_safe_updates, @@autocommit, CAST('2020-01-01' AS DATETIME(6))")
	return each(r, err, func(r Row) error {
		var mode, charset string
		var safe, commits bool
		var at any
		if err := r.Scan(&mode, &charset, &safe, &commits, &at); err != nil {
			return err
		}
		var errs []error
		if !strings.Contains(mode, "STRICT_TRANS_TABLES") && !strings.Contains(mode, "STRICT_ALL_TABLES") {
			errs = append(errs, errors.New("sql_mode has no STRICT_TRANS_TABLES, so that values would be cut silently"))
		}
		if charset != "utf8mb4" {
			errs = append(errs, fmt.Errorf("the connection's character set is %s: use charset=utf8mb4", charset))
		}
		if safe {
			errs = append(errs, errors.New("sql_safe_updates is on, which refuses updates by a join"))
		}
		if !commits {
			errs = append(errs, errors.New("autocommit is off, so that a statement outside of a transaction is never committed"))
		}
		if t, ok := at.(time.Time); ok && !alwaysUTC(t.Location()) {
			errs = append(errs, fmt.Errorf("the DSN's loc is %s, but the tables' times are in UTC: use loc=UTC", t.Location()))
		}
		return errors.Join(errs...)
	})
}

// alwaysUTC checks every month of 20 years, because a zone that is at UTC in winter may leave it in
// summer.
func alwaysUTC(loc *time.Location) bool {
	for month := range 20 * 12 {
		if _, offset := time.Date(2020, time.Month(1+month), 1, 0, 0, 0, 0, time.UTC).In(loc).Zone(); offset != 0 {
			return false
		}
	}
	return true
}

func (m *mysql) Schema() []string { return m.script(mysqlSchema) }
