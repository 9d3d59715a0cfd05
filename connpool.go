package outbox

import (
	"context"
	"database/sql"
	"fmt"
	"reflect"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox/internal/dispatch"
)

// Whether a gorm.ConnPool is a transaction, and how to get one from it. Its methods do not tell:
// the pools of sharding plugins have Commit and Rollback, which do nothing, and a BeginTx that may
// begin nothing.

var connPoolType = reflect.TypeFor[gorm.ConnPool]()

// maxWrapped bounds base: plugins wrap a pool for each statement, and one could wrap itself.
const maxWrapped = 10

// base is the innermost pool, connection or transaction that conn passes its statements to: what a
// struct embeds as its gorm.ConnPool, again and again.
func base(conn gorm.ConnPool) gorm.ConnPool {
	for range maxWrapped {
		switch conn.(type) {
		case nil, *sql.DB, *sql.Conn, *sql.Tx, *gorm.PreparedStmtDB, *gorm.PreparedStmtTX, *dispatch.Tx:
			return conn
		}
		v := reflect.Indirect(reflect.ValueOf(conn))
		if v.Kind() != reflect.Struct {
			return conn
		}
		// An exported field of this struct, so reading it cannot panic.
		f, ok := v.Type().FieldByName(connPoolType.Name())
		if !ok || len(f.Index) != 1 || f.Type != connPoolType {
			return conn
		}
		inner, _ := v.FieldByIndex(f.Index).Interface().(gorm.ConnPool)
		if inner == nil {
			return conn
		}
		conn = inner
	}
	return conn
}

// isTx reports whether conn is a transaction. Of a type that does not show what it wraps, one that
// can begin a transaction is taken for a pool: a pool that is taken for a transaction commits half
// of what was to be all or nothing.
func isTx(conn gorm.ConnPool) bool {
	conn = base(conn)
	if _, ok := conn.(gorm.TxCommitter); !ok {
		return false
	}
	return !begins(conn)
}

// transaction is the one that conn's statements run in, without what GORM and this library put
// around it; nil outside of one.
func transaction(conn gorm.ConnPool) any {
	if conn = base(conn); !isTx(conn) {
		return nil
	}
	if prepared, ok := conn.(*gorm.PreparedStmtTX); ok {
		conn = prepared.Tx
	}
	if guarded, ok := conn.(*dispatch.Tx); ok {
		conn = guarded.Tx // the guard would ask with a statement, and call closed what is not over yet
	}
	return conn
}

func begins(conn gorm.ConnPool) bool {
	switch conn.(type) {
	case gorm.TxBeginner, gorm.ConnPoolBeginner:
		return true
	}
	return false
}

// beginTx begins a transaction on conn, or on what it wraps when conn's own BeginTx begins none.
func beginTx(ctx context.Context, conn gorm.ConnPool, opts *sql.TxOptions) (tx gorm.ConnPool, err error) {
	for _, pool := range []gorm.ConnPool{conn, base(conn)} {
		switch b := pool.(type) {
		case gorm.TxBeginner:
			tx, err = b.BeginTx(ctx, opts)
		case gorm.ConnPoolBeginner:
			tx, err = b.BeginTx(ctx, opts)
		default:
			continue
		}
		if err != nil {
			return nil, err
		}
		// What is not known and has Commit is believed, unless it is the pool again.
		_, commits := tx.(gorm.TxCommitter)
		switch base(tx).(type) {
		case *sql.DB, *gorm.PreparedStmtDB:
			continue
		}
		if commits && !same(tx, conn) {
			return tx, nil
		}
	}
	return nil, fmt.Errorf("a connection of type %T cannot begin a transaction", conn)
}

func same(a, b gorm.ConnPool) bool {
	return reflect.TypeOf(a) == reflect.TypeOf(b) && reflect.TypeOf(a).Comparable() && a == b
}

// poolOf is the pool that conn is or wraps; nil when that cannot be known.
func poolOf(conn gorm.ConnPool) *sql.DB {
	conn = base(conn)
	if pool, ok := conn.(*sql.DB); ok {
		return pool
	}
	if wrapped, ok := conn.(gorm.GetDBConnector); ok {
		if pool, err := wrapped.GetDBConn(); err == nil {
			return pool
		}
	}
	return nil
}
