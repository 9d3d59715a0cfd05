// Package sqliteerrors has errors as SQLite's drivers make them. It is a package of its own because
// dialect tells such errors by the path of their type's package.
package sqliteerrors

import (
	"errors"
	"fmt"
	"testing"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// method is an error of a driver in pure Go.
type method struct{ code int }

func (m *method) Error() string { return fmt.Sprintf("it failed (%d)", m.code) }
func (m *method) Code() int     { return m.code }

// no is a number of a type of its own.
type no int

// field is an error of a driver in C.
type field struct {
	Code         no
	ExtendedCode no
}

func (f field) Error() string { return fmt.Sprintf("it failed (%d)", f.Code) }

// other is an error of the same package that has no code.
type other struct{ Code string }

func (other) Error() string { return "it failed" }

func TestErrorsByTheirForm(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want dialect.Class
	}{
		{"a method", &method{5}, dialect.Busy},
		{"a method's extended code", &method{2067}, dialect.Data},
		{"fields", field{Code: 5}, dialect.Busy},
		{"an extended code", field{19, 2067}, dialect.Data},
		{"a pointer to fields", &field{Code: 13}, dialect.Busy},
		{"wrapped", fmt.Errorf("insert: %w", field{Code: 5}), dialect.Busy},
		{"wrapped twice at once", fmt.Errorf("%w: %w", errors.New("insert"), field{Code: 5}), dialect.Busy},
		{"joined", errors.Join(errors.New("first"), &method{5}), dialect.Busy},
		{"no code", field{}, dialect.Other},
		{"a code that is no number", other{"5"}, dialect.Other},
		{"a nil pointer", (*field)(nil), dialect.Other},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := dialect.Classify(c.err); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
}

func TestErrorsOfTheDriver(t *testing.T) {
	db := testdb.SQLite(t)
	if err := db.Exec("CREATE TABLE t (a text NOT NULL UNIQUE)").Error; err != nil {
		t.Fatal(err)
	}
	exec := func(query string) error { return db.Exec(query).Error }
	for _, c := range []struct {
		name, query string
		want        dialect.Class
	}{
		{"no such table", "INSERT INTO nowhere VALUES (1)", dialect.Missing},
		{"not null", "INSERT INTO t VALUES (NULL)", dialect.Data},
		{"unique", "INSERT INTO t VALUES ('x'), ('x')", dialect.Data},
		{"syntax", "INSERT INT t", dialect.Other},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := exec(c.query); dialect.Classify(err) != c.want {
				t.Errorf("%v: got %d, want %d", err, dialect.Classify(err), c.want)
			}
		})
	}
	t.Run("busy", func(t *testing.T) {
		err := db.Transaction(func(tx *gorm.DB) error {
			return db.Connection(func(other *gorm.DB) error {
				if err := other.Exec("PRAGMA busy_timeout = 0").Error; err != nil {
					return err
				}
				if err := other.Exec("INSERT INTO t VALUES ('y')").Error; dialect.Classify(err) != dialect.Busy {
					t.Errorf("%v: got %d", err, dialect.Classify(err))
				}
				return nil
			})
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
