package dialect_test

import (
	"database/sql"
	"fmt"
	"strings"
	"testing"

	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// mysqlServers are those that understand this dialect.
var mysqlServers = map[string]func(testing.TB) string{"mariadb": testdb.MariaDBDSN, "mysql": testdb.MySQLDSN}

func TestPlansOfMySQL(t *testing.T) {
	for name, dsn := range mysqlServers {
		t.Run(name, func(t *testing.T) { plansOfMySQL(t, dsn(t)) })
	}
}

func plansOfMySQL(t *testing.T, dsn string) {
	dsn += "&sql_mode=%27PIPES_AS_CONCAT,STRICT_TRANS_TABLES%27"
	digit := "(SELECT 0 AS d" + strings.Repeat(" UNION ALL SELECT %d", 9) + ")"
	digit = fmt.Sprintf(digit, 1, 2, 3, 4, 5, 6, 7, 8, 9)
	plans(t, "mysql", "mysql", dsn, func(n int) string {
		return fmt.Sprintf(`(SELECT n, LPAD(n, 6, '0') AS digits FROM (
	SELECT a.d + 10*b.d + 100*c.d + 1000*d.d + 10000*e.d AS n FROM %[1]s a, %[1]s b, %[1]s c, %[1]s d, %[1]s e) x WHERE n < %[2]d) s`, digit, n)
	}, "(UTC_TIMESTAMP(6) - INTERVAL 2 DAY)", "(UTC_TIMESTAMP(6) + INTERVAL 1 YEAR)", explainMySQL)
}

// explainMySQL counts the rows that a statement reads, whatever EXPLAIN would say, and finds by
// EXPLAIN those that look for rows of known ids otherwise than one by one: on a small table a scan
// reads few rows, but locks them.
func explainMySQL(p *planned, query string, args []any) {
	if strings.Contains(query, "STRAIGHT_JOIN") || strings.HasPrefix(query, "UPDATE") {
		byID(p, query, args)
	}
	if _, err := p.tx.Exec("SAVEPOINT planned"); err != nil {
		p.t.Fatal(err)
	}
	before := readsOfMySQL(p)
	var err error
	if strings.HasPrefix(strings.TrimSpace(query), "SELECT") {
		var rows *sql.Rows
		if rows, err = p.tx.Query(query, args...); err == nil {
			for rows.Next() {
			}
			err = rows.Close()
		}
	} else {
		_, err = p.tx.Exec(query, args...)
	}
	if err != nil {
		p.t.Fatalf("%v\n%s", err, query)
	}
	if n := readsOfMySQL(p) - before; n > 10*planLimit+p.bound {
		p.t.Errorf("it reads %d rows instead of at most %d:\n%s", n, 10*planLimit+p.bound, query)
	}
	if _, err := p.tx.Exec("ROLLBACK TO SAVEPOINT planned"); err != nil {
		p.t.Fatal(err)
	}
}

func readsOfMySQL(p *planned) (n int) {
	rows, err := p.tx.Query("SHOW SESSION STATUS WHERE Variable_name IN ('Handler_read_first', 'Handler_read_key', 'Handler_read_last', 'Handler_read_next', 'Handler_read_prev', 'Handler_read_rnd_next', 'Handler_icp_attempts')")
	if err != nil {
		p.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		var value int
		if err := rows.Scan(&name, &value); err != nil {
			p.t.Fatal(err)
		}
		n += value
	}
	return n
}

func byID(p *planned, query string, args []any) {
	if _, statement, ok := strings.Cut(query, " FOR */ "); ok { // behind SET STATEMENT, which does not go with EXPLAIN
		query = statement
	}
	rows, err := p.tx.Query("EXPLAIN FORMAT=TRADITIONAL "+query, args...)
	if err != nil {
		p.t.Fatalf("%v\n%s", err, query)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		p.t.Fatal(err)
	}
	found := false
	for rows.Next() {
		values := make([]sql.NullString, len(columns))
		dest := make([]any, len(columns))
		for i := range values {
			dest[i] = &values[i]
		}
		if err := rows.Scan(dest...); err != nil {
			p.t.Fatal(err)
		}
		row := map[string]string{}
		for i, c := range columns {
			row[c] = values[i].String
		}
		if row["table"] == "k" && (row["type"] != "eq_ref" || row["key"] != planNames().Index("tasks", "key")) {
			p.t.Errorf("it looks for keys by %s, %s:\n%s", row["type"], row["key"], query)
		}
		byKey := row["table"] == "t" && row["type"] == "eq_ref" || row["table"] == "tasks" && row["type"] == "range"
		found = found || byKey && row["key"] == "PRIMARY"
	}
	if !found {
		p.t.Errorf("it does not look for the rows one by one:\n%s", query)
	}
}
