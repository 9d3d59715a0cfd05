package dialect

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
)

// state is an error as PostgreSQL's drivers give it.
type state string

func (s state) Error() string    { return "ERROR: something (SQLSTATE " + string(s) + ")" }
func (s state) SQLState() string { return string(s) }

func (c Class) String() string {
	return [...]string{"Other", "Retry", "Busy", "Lost", "Data", "Missing", "Undone"}[c]
}

func TestClassify(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want Class
	}{
		{"no error", nil, Other},
		{"anything", errors.New("boom"), Other},
		{"serialization failure", state("40001"), Retry},
		{"deadlock", state("40P01"), Retry},
		{"lock not available", state("55P03"), Busy},
		{"statement timeout", state("57014"), Busy},
		{"read-only server", state("25006"), Busy},
		{"too many connections", state("53300"), Busy},
		{"disk full", state("53100"), Busy},
		{"administrator's shutdown", state("57P01"), Lost},
		{"crash shutdown", state("57P02"), Lost},
		{"cannot connect now", state("57P03"), Lost},
		{"connection failure", state("08006"), Lost},
		{"undefined table", state("42P01"), Missing},
		{"invalid schema", state("3F000"), Missing},
		{"a character that is not in the repertoire", state("22021"), Data},
		{"invalid JSON", state("22P02"), Data},
		{"NUL in JSON", state("22P05"), Data},
		{"too long", state("22001"), Data},
		{"not null", state("23502"), Data},
		{"unique", state("23505"), Data},
		{"too complex", state("54001"), Data},
		{"syntax error", state("42601"), Other},
		{"insufficient privilege", state("42501"), Other},
		{"aborted transaction", state("25P02"), Undone},
		{"no transaction", state("25P01"), Other},
		{"no such savepoint", state("3B001"), Other},
		{"idle in transaction for too long", state("25P03"), Lost},
		{"transaction timeout", state("25P04"), Lost},
		{"wrong password", state("28P01"), Busy},
		{"no such database", state("3D000"), Busy},
		{"a statement that another session of a pooler has prepared", state("26000"), Retry},
		{"a statement that this session of a pooler has prepared for another", state("42P05"), Retry},
		{"statement completion unknown", state("40003"), Lost},
		{"I/O error", state("58030"), Busy},
		{"raised by a trigger", state("P0001"), Data},
		{"view's check option", state("44000"), Data},
		{"database dropped", state("57P04"), Lost},
		{"configuration limit exceeded", state("53400"), Busy},
		{"data corrupted", state("XX001"), Other},
		{"an empty state", state(""), Other},
		{"a state that is none", state("x"), Other},
		{"wrapped", fmt.Errorf("insert: %w", state("40001")), Retry},
		{"wrapped twice at once", fmt.Errorf("%w: %w", errors.New("insert"), state("40001")), Retry},
		{"joined", errors.Join(errors.New("first"), state("08006")), Lost},
		{"a pointer's", &pointerState{}, Retry},

		{"bad connection", driver.ErrBadConn, Lost},
		{"connection done", fmt.Errorf("x: %w", sql.ErrConnDone), Lost},
		{"transaction done", sql.ErrTxDone, Other},
		{"no rows", sql.ErrNoRows, Other},
		{"end of file", io.EOF, Lost},
		{"unexpected end of file", io.ErrUnexpectedEOF, Lost},
		{"closed", net.ErrClosed, Lost},
		{"refused", &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, Lost},
		{"no such host", &net.DNSError{Err: "no such host", Name: "db"}, Lost},
		{"deadline", context.DeadlineExceeded, Lost},
		{"cancelled", fmt.Errorf("query: %w", context.Canceled), Lost},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Classify(c.err); got != c.want {
				t.Errorf("%v: got %v, want %v", c.err, got, c.want)
			}
		})
	}
}

type pointerState struct{}

func (*pointerState) Error() string    { return "deadlock" }
func (*pointerState) SQLState() string { return "40P01" }

func TestClassifySQLiteCodes(t *testing.T) {
	none := errors.New("SQL logic error")
	for _, c := range []struct {
		name string
		code int
		err  error
		want Class
	}{
		{"busy", 5, none, Busy},
		{"busy snapshot", 517, none, Busy},
		{"busy recovery", 261, none, Busy},
		{"locked, shared cache", 262, none, Busy},
		{"read-only", 8, none, Busy},
		{"read-only, moved", 1032, none, Busy},
		{"interrupted", 9, none, Busy},
		{"I/O error, fsync", 1034, none, Busy},
		{"full", 13, none, Busy},
		{"cannot open", 14, none, Busy},
		{"unique", 2067, none, Data},
		{"not null", 1299, none, Data},
		{"too big", 18, none, Data},
		{"mismatch", 20, none, Data},
		{"no such table", 1, errors.New("no such table: outbox_tasks"), Missing},
		{"another mistake", 1, errors.New(`near "FORM": syntax error`), Other},
		{"aborted by a rollback", 516, none, Retry},
		{"no memory", 7, none, Busy},
		{"disk I/O error, write", 778, none, Busy},
		{"locking protocol", 15, none, Busy},
		{"schema changed", 17, none, Retry},
		{"range", 25, none, Data},
		{"raised by a trigger", 1811, none, Data},
		{"misuse", 21, none, Other},
		{"not a database", 26, none, Other},
		{"corrupt", 11, none, Other},
		{"none", 0, none, Other},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := classifySQLite(c.code, c.err); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}
