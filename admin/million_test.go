package admin_test

import (
	"cmp"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// walking marks what no index serves: it is measured, and docs/admin.md says so.
const walking = "walks: tasks?"

// TestMillion measures the pages on a million tasks and a million rows of history: make
// bench-admin.
func TestMillion(t *testing.T) {
	rows := os.Getenv("OUTBOX_ADMIN_ROWS")
	if rows == "" {
		t.Skip("make bench-admin runs it")
	}
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{QueryTimeout: time.Minute})
		fill(t, db, rows)
		some := d.create(outbox.Key("the-one"), outbox.StartAfter(time.Hour))
		for _, page := range []string{"", "?range=7d", "tasks", "tasks?state=pending", "tasks?state=scheduled", "tasks?state=running", "tasks?state=parked",
			"tasks?state=failed", "tasks?state=done", "tasks?key=the-one", "tasks?key=key-77", "tasks?state=done&key=key-77", "tasks?id=" + some.ID,
			"tasks?state=failed&func=mail.send", "tasks?state=failed&func=nobody", "tasks?state=failed&func=mail.send&error=dial+tcp", "tasks?state=failed&error=nobody",
			"tasks?state=running&func=nobody", "tasks?state=parked&func=nobody", "tasks?state=failed&from=2020-01-01", "tasks/" + some.ID, "functions", "processes", "audit", "api/v1/tasks?state=scheduled&limit=200",
			walking + "func=nobody", walking + "state=done&func=nobody", walking + "state=scheduled&func=nobody", walking + "error=nobody"} {
			var took []time.Duration
			for range 5 {
				again := open2(t, d) // nothing remembered
				begin := time.Now()
				status(t, again.get(strings.Replace(page, walking, "tasks?", 1)), 200)
				took = append(took, time.Since(begin))
			}
			slices.Sort(took)
			t.Logf("%-40s best %v, median %v, worst %v", cmp.Or(page, "overview"), took[0].Round(time.Millisecond), took[2].Round(time.Millisecond), took[4].Round(time.Millisecond))
			// MySQL keeps rows in the order of their ids, so each failed one is on another page, of
			// more than its buffer holds.
			scattered := db.Name() == "mysql" && strings.Contains(page, "state=failed")
			if took[2] > 300*time.Millisecond && !strings.HasPrefix(page, walking) && !scattered {
				t.Errorf("%s takes %v", page, took[2])
			}
		}
	})
}

// fill writes rows: tasks that are due and later, in two queues, and history of the last week, one
// of a hundred failed. The order of the ids is that of time, as it is with the library's: a
// database may keep its rows by them.
func fill(t *testing.T, db *gorm.DB, rows string) {
	t.Helper()
	tasks := `INSERT INTO outbox_tasks (id, func, args, queue, priority, run_at, state, attempt, uncounted, crashes, max_attempts, timeout_ms, repeatable, version, created_at)
		SELECT {t-}, 'mail.send', '{"to":"someone@example.com"}', CASE WHEN i % 2 = 0 THEN 'mail' ELSE 'default' END, 1 + i % 4, {at+}, 'pending', 0, 0, 0, 1, 0, {false}, 1, {now} FROM {series}`
	history := `INSERT INTO outbox_history (id, func, args, key, queue, priority, run_at, attempt, uncounted, crashes, max_attempts, timeout_ms, version, created_at, started_at, status, reason, error, finished_at)
		SELECT {h-}, 'mail.send', '{"to":"someone@example.com"}', 'key-' || i, 'default', 2, {at-}, 1, 0, 0, 1, 0, 2, {at-}, {at-},
		CASE WHEN i % 100 = 0 THEN 'error' ELSE 'success' END, CASE WHEN i % 100 = 0 THEN 'failed' ELSE '' END, CASE WHEN i % 100 = 0 THEN 'dial tcp: timeout' END, {at-} FROM {series}`
	names := map[string]string{"{now}": "now()", "{false}": "false", "{at+}": "now() + (i - 1000) * interval '1 second'", "{at-}": "now() - i * interval '600 milliseconds'",
		"{series}": "generate_series(1, " + rows + ") i", "{t-}": "'t-' || lpad(i::text, 9, '0')", "{h-}": "'h-' || lpad((1e9 - i)::bigint::text, 9, '0')"}
	after := "VACUUM ANALYZE"
	if db.Name() == "sqlite" {
		at := func(offset string) string {
			return "strftime('%Y-%m-%d %H:%M:%f', 'now', (" + offset + ") || ' seconds') || '000+00:00'"
		}
		names = map[string]string{"{now}": at("0"), "{false}": "0", "{at+}": at("i - 1000"), "{at-}": at("i * -0.6"),
			"{series}": "(WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < " + rows + ") SELECT i FROM s)",
			"{t-}":     "printf('t-%09d', i)", "{h-}": "printf('h-%09d', 1000000000 - i)"}
		after = "ANALYZE"
	}
	if db.Name() == "mysql" {
		names = map[string]string{"{now}": "utc_timestamp(6)", "{false}": "false", "{at+}": "utc_timestamp(6) + interval (i - 1000) second",
			"{at-}": "utc_timestamp(6) - interval i * 600000 microsecond", "{t-}": "concat('t-', lpad(i, 9, '0'))", "{h-}": "concat('h-', lpad(1000000000 - i, 9, '0'))",
			"'key-' || i": "concat('key-', i)", ", key,": ", `key`,", "{series}": "(SELECT CAST(n AS SIGNED) AS i FROM JSON_TABLE(CONCAT('[0', REPEAT(',0', " + rows + " - 1), ']'), '$[*]' COLUMNS (n FOR ORDINALITY)) j) s"}
		after = "ANALYZE TABLE outbox_tasks, outbox_history"
	}
	for _, text := range []string{tasks, history} {
		for name, value := range names {
			text = strings.ReplaceAll(text, name, value)
		}
		must(t, db.Exec(text).Error)
	}
	must(t, db.Exec(after).Error)
}
