package dialect

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
)

// Class says what an error of the database asks for.
type Class int

const (
	Other   Class = iota
	Retry         // the transaction was undone and may be run again: serialization failure, deadlock
	Busy          // a lock is held or the database is short of something: wait, then try again
	Lost          // the connection is gone or the server is going: whether the statement took effect is unknown
	Data          // the database refuses the values
	Missing       // a table is not there
)

// Classify sorts an error. Drivers are not imported for it: PostgreSQL's are read through SQLState(), SQLite's through
// Code() or the fields Code and ExtendedCode.
//
// Sources: PostgreSQL, "Appendix A. Error Codes"; SQLite, "Result and Error Codes" (rescode.html).
func Classify(err error) Class {
	var state interface{ SQLState() string }
	switch {
	case err == nil:
		return Other
	case errors.As(err, &state):
		return classifyState(state.SQLState())
	case errors.Is(err, driver.ErrBadConn), errors.Is(err, sql.ErrConnDone), errors.Is(err, io.EOF),
		errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return Lost
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return Lost
	}
	if code, ok := sqliteCode(err); ok {
		return classifySQLite(code, err)
	}
	var netErr net.Error
	if errors.As(err, &netErr) {
		return Lost
	}
	return Other
}

func classifyState(state string) Class {
	switch state {
	case "40001", "40P01": // serialization_failure, deadlock_detected
		return Retry
	case "55P03", "55006": // lock_not_available, object_in_use
		return Busy
	case "42P01", "3F000": // undefined_table, invalid_schema_name
		return Missing
	case "57014": // query_canceled: a statement timeout
		return Busy
	case "25006": // read_only_sql_transaction: a standby, or a server that was made read-only
		return Busy
	}
	if len(state) < 2 {
		return Other
	}
	switch state[:2] {
	case "08", "57": // connection exception, operator intervention
		return Lost
	case "53": // insufficient resources
		return Busy
	case "22", "23", "54": // data exception, integrity constraint violation, program limit exceeded
		return Data
	}
	return Other
}

func classifySQLite(code int, err error) Class {
	switch code & 0xff {
	case 5, 6: // SQLITE_BUSY, SQLITE_LOCKED
		return Busy
	case 7, 8, 9, 10, 13, 14: // NOMEM, READONLY, INTERRUPT, IOERR, FULL, CANTOPEN
		return Busy
	case 18, 19, 20, 25: // TOOBIG, CONSTRAINT, MISMATCH, RANGE
		return Data
	case 1: // SQLITE_ERROR, which has no finer code for this
		if strings.Contains(err.Error(), "no such table") {
			return Missing
		}
	}
	return Other
}

// sqliteCode reads a code from the error types of SQLite's drivers, whose packages must not be imported here. Errors that
// wrap several are looked through as errors.As does.
func sqliteCode(err error) (int, bool) {
	for ; err != nil; err = errors.Unwrap(err) {
		if several, ok := err.(interface{ Unwrap() []error }); ok {
			for _, e := range several.Unwrap() {
				if code, ok := sqliteCode(e); ok {
					return code, true
				}
			}
			return 0, false
		}
		v := reflect.Indirect(reflect.ValueOf(err))
		if !v.IsValid() || !strings.Contains(strings.ToLower(v.Type().PkgPath()), "sqlite") {
			continue
		}
		if coder, ok := err.(interface{ Code() int }); ok {
			return coder.Code(), true
		}
		if v.Kind() != reflect.Struct {
			continue
		}
		for _, name := range []string{"ExtendedCode", "Code"} {
			if f := v.FieldByName(name); f.IsValid() && f.CanInt() && f.Int() != 0 {
				return int(f.Int()), true
			}
		}
	}
	return 0, false
}
