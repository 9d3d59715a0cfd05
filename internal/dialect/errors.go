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
	Other   Class = iota // give up, or ask a person: nothing that the library does will help
	Retry                // run the whole transaction again: it was undone for the sake of others
	Busy                 // wait, then try again: a lock is held, or the database is short of something
	Lost                 // reconnect and look: whether the statement took effect is unknown
	Data                 // the database refuses the values
	Missing              // a table is not there
	Undone               // an earlier error has undone the transaction, and it only waits for its rollback
)

// States by SQLSTATE, or by its class of two characters where all of that class ask for the same. What is not here is Other.
//
// Source: PostgreSQL, "Appendix A. PostgreSQL Error Codes", https://www.postgresql.org/docs/current/errcodes-appendix.html
var states = map[string]Class{
	"08":    Lost,    // connection exception
	"22":    Data,    // data exception
	"23":    Data,    // integrity constraint violation
	"25006": Busy,    // read_only_sql_transaction: a standby, or a server that was made read-only
	"25P02": Undone,  // in_failed_sql_transaction
	"25P03": Lost,    // idle_in_transaction_session_timeout: the session is over
	"25P04": Lost,    // transaction_timeout: the session is over
	"28":    Busy,    // invalid authorization specification: as while a password is changed
	"3D000": Busy,    // invalid_catalog_name: the database is not there (yet)
	"3F000": Missing, // invalid_schema_name
	"40001": Retry,   // serialization_failure
	"40003": Lost,    // statement_completion_unknown
	"40P01": Retry,   // deadlock_detected
	"42P01": Missing, // undefined_table
	"44000": Data,    // with_check_option_violation
	"53":    Busy,    // insufficient resources: disk full, out of memory, too many connections
	"54":    Data,    // program limit exceeded
	"55006": Busy,    // object_in_use
	"55P03": Busy,    // lock_not_available: a lock timeout
	"57":    Lost,    // operator intervention: the server or this session is being shut down
	"57014": Busy,    // query_canceled: a statement timeout
	"58":    Busy,    // system error: an I/O error
	"P0":    Data,    // PL/pgSQL error: what a trigger raises
}

// Primary result codes of SQLite; an extended code has one in its lowest byte. What is not here is Other.
//
// Source: SQLite, "Result and Error Codes", https://www.sqlite.org/rescode.html
var sqliteCodes = map[int]Class{
	4:  Retry, // ABORT: a rollback came in between
	5:  Busy,  // BUSY: another connection holds the lock
	6:  Busy,  // LOCKED: this connection does, or one that shares its cache
	7:  Busy,  // NOMEM
	8:  Busy,  // READONLY
	9:  Busy,  // INTERRUPT
	10: Busy,  // IOERR
	13: Busy,  // FULL
	14: Busy,  // CANTOPEN
	15: Busy,  // PROTOCOL: a race for the write-ahead log's locks
	17: Retry, // SCHEMA: it was changed while a statement was prepared
	18: Data,  // TOOBIG
	19: Data,  // CONSTRAINT
	20: Data,  // MISMATCH
	25: Data,  // RANGE
}

// Classify sorts an error. Drivers are not imported for it: PostgreSQL's are read through SQLState(), SQLite's through
// Code() or the fields Code and ExtendedCode.
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
	if class, ok := states[state]; ok {
		return class
	}
	return states[state[:min(2, len(state))]]
}

func classifySQLite(code int, err error) Class {
	if code&0xff == 1 && strings.Contains(err.Error(), "no such table") { // ERROR has no finer code for this
		return Missing
	}
	return sqliteCodes[code&0xff]
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
