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

// Class says what to do after an error of the database.
type Class int

const (
	Other   Class = iota // give up, or ask a person: the library can do nothing about it
	Retry                // run the whole transaction again: another one made the database undo it
	Busy                 // wait, then try again: a lock is held, or the database lacks a resource
	Lost                 // reconnect and look: it is unknown whether the statement took effect
	Data                 // the database refuses the values
	Missing              // a table does not exist
	Undone               // an earlier error has undone the transaction, which must be rolled back
)

// States are classes by SQLSTATE, or by the two characters of its class if the whole class asks for
// the same. Any other state is Other.
//
// Source: PostgreSQL, "Appendix A. PostgreSQL Error Codes",
// https://www.postgresql.org/docs/current/errcodes-appendix.html
var states = map[string]Class{
	"08":    Lost,    // connection exception
	"22":    Data,    // data exception
	"23":    Data,    // integrity constraint violation
	"25006": Busy,    // read_only_sql_transaction: a standby, or a server that was made read-only
	"25P02": Undone,  // in_failed_sql_transaction
	"25P03": Lost,    // idle_in_transaction_session_timeout: the session is over
	"25P04": Lost,    // transaction_timeout: the session is over
	"26000": Retry,   // invalid_sql_statement_name: a pooler's other session has not prepared it
	"28":    Busy,    // invalid authorization specification: such as while a password is changed
	"3D000": Busy,    // invalid_catalog_name: the database does not exist (yet)
	"3F000": Missing, // invalid_schema_name
	"40001": Retry,   // serialization_failure
	"40003": Lost,    // statement_completion_unknown
	"40P01": Retry,   // deadlock_detected
	"42P01": Missing, // undefined_table
	"42P05": Retry,   // duplicate_prepared_statement: a pooler's other client has prepared it
	"44000": Data,    // with_check_option_violation
	"53":    Busy,    // insufficient resources: disk full, out of memory, too many connections
	"54":    Data,    // program limit exceeded
	"55006": Busy,    // object_in_use
	"55P03": Busy,    // lock_not_available: a lock timeout
	"57":    Lost,    // operator intervention: the server or this session is being shut down
	"57014": Busy,    // query_canceled: a statement timeout
	"58":    Busy,    // system error: an I/O error
	"P0":    Data,    // PL/pgSQL error: raised by a trigger
}

// Primary result codes of SQLite. The lowest byte of an extended code is its primary code. Any
// other code is Other.
//
// Source: SQLite, "Result and Error Codes", https://www.sqlite.org/rescode.html
var sqliteCodes = map[int]Class{
	4:  Retry, // ABORT: a rollback during the statement
	5:  Busy,  // BUSY: another connection holds the lock
	6:  Busy,  // LOCKED: this connection holds the lock, or one that shares its cache
	7:  Busy,  // NOMEM
	8:  Busy,  // READONLY
	9:  Busy,  // INTERRUPT
	10: Busy,  // IOERR
	13: Busy,  // FULL
	14: Busy,  // CANTOPEN
	15: Busy,  // PROTOCOL: a race for the write-ahead log's locks
	17: Retry, // SCHEMA: the schema was changed while a statement was prepared
	18: Data,  // TOOBIG
	19: Data,  // CONSTRAINT
	20: Data,  // MISMATCH
	25: Data,  // RANGE
}

// Error numbers of MySQL and MariaDB. Any other number is Other.
//
// Source: MySQL 8.0 Error Message Reference,
// https://dev.mysql.com/doc/mysql-errors/8.0/en/server-error-reference.html
var mysqlCodes = map[int]Class{
	1015: Busy,    // ER_CANT_LOCK
	1020: Retry,   // ER_CHECKREAD: MariaDB's innodb_snapshot_isolation undoes the transaction
	1021: Busy,    // ER_DISK_FULL
	1022: Data,    // ER_DUP_KEY
	1028: Busy,    // ER_FILSORT_ABORT
	1030: Busy,    // ER_GET_ERRNO: an error of the storage engine, such as a disk error
	1037: Busy,    // ER_OUTOFMEMORY
	1038: Busy,    // ER_OUT_OF_SORTMEMORY
	1040: Busy,    // ER_CON_COUNT_ERROR: too many connections
	1041: Busy,    // ER_OUT_OF_RESOURCES
	1045: Busy,    // ER_ACCESS_DENIED_ERROR: for example while a password is changed
	1047: Busy,    // ER_UNKNOWN_COM_ERROR: a node of a Galera cluster is not ready
	1048: Data,    // ER_BAD_NULL_ERROR
	1049: Busy,    // ER_BAD_DB_ERROR: the database does not exist (yet)
	1053: Lost,    // ER_SERVER_SHUTDOWN
	1062: Data,    // ER_DUP_ENTRY
	1105: Other,   // ER_UNKNOWN_ERROR
	1114: Busy,    // ER_RECORD_FILE_FULL
	1146: Missing, // ER_NO_SUCH_TABLE
	1153: Data,    // ER_NET_PACKET_TOO_LARGE
	1158: Lost,    // ER_NET_READ_ERROR
	1159: Lost,    // ER_NET_READ_INTERRUPTED
	1160: Lost,    // ER_NET_ERROR_ON_WRITE
	1161: Lost,    // ER_NET_WRITE_INTERRUPTED
	1180: Lost,    // ER_ERROR_DURING_COMMIT
	1203: Busy,    // ER_TOO_MANY_USER_CONNECTIONS
	1205: Retry,   // ER_LOCK_WAIT_TIMEOUT: undoes only the statement; the rest must not commit
	1206: Busy,    // ER_LOCK_TABLE_FULL
	1213: Retry,   // ER_LOCK_DEADLOCK
	1216: Data,    // ER_NO_REFERENCED_ROW
	1217: Data,    // ER_ROW_IS_REFERENCED
	1223: Busy,    // ER_CANT_UPDATE_WITH_READLOCK
	1226: Busy,    // ER_USER_LIMIT_REACHED
	1264: Data,    // ER_WARN_DATA_OUT_OF_RANGE
	1265: Data,    // WARN_DATA_TRUNCATED
	1290: Busy,    // ER_OPTION_PREVENTS_STATEMENT: the server was made read-only
	1292: Data,    // ER_TRUNCATED_WRONG_VALUE
	1317: Busy,    // ER_QUERY_INTERRUPTED
	1364: Data,    // ER_NO_DEFAULT_FOR_FIELD
	1366: Data,    // ER_TRUNCATED_WRONG_VALUE_FOR_FIELD
	1406: Data,    // ER_DATA_TOO_LONG
	1411: Data,    // ER_WRONG_VALUE_FOR_TYPE
	1451: Data,    // ER_ROW_IS_REFERENCED_2
	1452: Data,    // ER_NO_REFERENCED_ROW_2
	1644: Data,    // ER_SIGNAL_EXCEPTION: raised by a trigger
	1690: Data,    // ER_DATA_OUT_OF_RANGE
	1792: Busy,    // ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION
	1836: Busy,    // ER_READ_ONLY_MODE
	1927: Lost,    // MariaDB's ER_CONNECTION_KILLED
	1969: Busy,    // MariaDB's ER_STATEMENT_TIMEOUT
	3024: Busy,    // ER_QUERY_TIMEOUT
	3032: Busy,    // ER_SERVER_OFFLINE_MODE
	3100: Retry,   // ER_RUN_HOOK_ERROR: group replication refused the commit
	3101: Retry,   // ER_TRANSACTION_ROLLBACK_DURING_COMMIT
	3169: Lost,    // ER_SESSION_WAS_KILLED
	3572: Busy,    // ER_LOCK_NOWAIT
	3819: Data,    // ER_CHECK_CONSTRAINT_VIOLATED
	4025: Data,    // MariaDB's ER_CONSTRAINT_FAILED
	4031: Lost,    // ER_CLIENT_INTERACTION_TIMEOUT
}

// The errors of github.com/go-sql-driver/mysql that have no type of their own.
var mysqlTexts = map[string]Class{
	"invalid connection": Lost,
	"malformed packet":   Lost,
	"busy buffer":        Lost,
	"commands out of sync. You can't run this command now":                       Lost,
	"commands out of sync. Did you run multiple statements at once?":             Lost,
	"packet for query is too large. Try adjusting the `Config.MaxAllowedPacket`": Data,
}

// ReadOnly reports that the session accepts no writes: for example, its server was made a standby,
// or the application has made the session read-only and left it so.
func ReadOnly(err error) bool {
	var state interface{ SQLState() string }
	if errors.As(err, &state) {
		return state.SQLState() == "25006"
	}
	code, _ := driverCode(err, "mysql", "Number")
	return code == 1290 || code == 1792 || code == 1836
}

// OfSession reports that a new session may succeed where this one fails: this session is read-only,
// sees no tables, lacks a permission or returns values that the driver cannot read.
func OfSession(err error) bool {
	class := Classify(err)
	return err != nil && (class == Missing || class == Other || ReadOnly(err))
}

// errMigrating means that another session holds the lock that Lock takes.
var errMigrating = errors.New("another process migrates")

// Classify returns the class of an error without importing the drivers: PostgreSQL's errors are
// read through SQLState(), SQLite's through Code() or the fields Code and ExtendedCode, MySQL's
// through the field Number.
func Classify(err error) (class Class) {
	if err == nil {
		return Other
	}
	defer func() {
		if recover() != nil {
			class = Other // a method of the error panics
		}
	}()
	var state interface{ SQLState() string }
	switch {
	case errors.As(err, &state):
		return classifyState(state.SQLState())
	case errors.Is(err, errMigrating):
		return Busy
	case errors.Is(err, driver.ErrBadConn), errors.Is(err, sql.ErrConnDone), errors.Is(err, io.EOF),
		errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return Lost
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return Lost
	}
	if code, ok := sqliteCode(err); ok {
		return classifySQLite(code, err)
	}
	if code, ok := driverCode(err, "mysql", "Number"); ok {
		return classifyMySQL(code, err)
	}
	if class, ok := classifyText(err); ok {
		return class
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

// classifyMySQL looks at the text of two errors. A Galera node returns them for a transaction over
// its limits, and rolls it back. The same numbers also have other causes.
func classifyMySQL(code int, err error) Class {
	if code == 1105 && strings.Contains(err.Error(), "Maximum writeset size exceeded") ||
		code == 1180 && strings.Contains(err.Error(), "wsrep_max_ws_rows exceeded") {
		return Data
	}
	return mysqlCodes[code]
}

func classifySQLite(code int, err error) Class {
	if code&0xff == 1 && strings.Contains(err.Error(), "no such table") { // no code of its own
		return Missing
	}
	return sqliteCodes[code&0xff]
}

// sqliteCode reads a primary or extended code.
func sqliteCode(err error) (int, bool) { return driverCode(err, "sqlite", "ExtendedCode", "Code") }

// driverCode reads a code from the error types of drivers. Their packages must not be imported
// here, so it reads the code from a method Code or from the first of some fields that is not zero.
// It searches an error that wraps several errors as errors.As does.
func driverCode(err error, pkg string, fields ...string) (int, bool) {
	for ; err != nil; err = errors.Unwrap(err) {
		if several, ok := err.(interface{ Unwrap() []error }); ok {
			for _, e := range several.Unwrap() {
				if code, ok := driverCode(e, pkg, fields...); ok {
					return code, true
				}
			}
			return 0, false
		}
		v := reflect.Indirect(reflect.ValueOf(err))
		if !v.IsValid() || !strings.Contains(strings.ToLower(v.Type().PkgPath()), pkg) {
			continue
		}
		if coder, ok := err.(interface{ Code() int }); ok {
			return coder.Code(), true
		}
		if v.Kind() != reflect.Struct {
			continue
		}
		for _, name := range fields {
			switch f := v.FieldByName(name); {
			case f.IsValid() && f.CanInt() && f.Int() != 0:
				return int(f.Int()), true
			case f.IsValid() && f.CanUint() && f.Uint() != 0:
				return int(f.Uint()), true
			}
		}
	}
	return 0, false
}

// classifyText knows the errors that can only be told by their texts.
func classifyText(err error) (Class, bool) {
	for ; err != nil; err = errors.Unwrap(err) {
		if several, ok := err.(interface{ Unwrap() []error }); ok {
			for _, e := range several.Unwrap() {
				if class, ok := classifyText(e); ok {
					return class, true
				}
			}
			return Other, false
		}
		if v := reflect.ValueOf(err); v.Kind() == reflect.Pointer && v.IsNil() {
			return Other, false // Error would panic
		}
		if class, ok := mysqlTexts[err.Error()]; ok {
			return class, true
		}
	}
	return Other, false
}
