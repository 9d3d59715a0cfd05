package admin_test

import (
	"context"
	"encoding/csv"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// TestExportEnds: an export that holds less than the filter finds says so in its last record, and
// one that holds all does not.
func TestExportEnds(t *testing.T) {
	db := testdb.SQLite(t)
	d := open(t, db, admin.Options{})
	fill(t, db, "10200")
	const says = "The export ends after 10,000 tasks, the rest is missing"
	rows, err := csv.NewReader(strings.NewReader(status(t, d.get("export?format=csv&state=done"), 200))).ReadAll()
	must(t, err)
	if len(rows) != 10_002 || !strings.HasPrefix(rows[10_001][0], says) {
		t.Errorf("%d rows of CSV, the last is %q", len(rows), rows[len(rows)-1])
	}
	lines := strings.Split(strings.TrimSpace(status(t, d.get("export?format=ndjson&state=done"), 200)), "\n")
	if len(lines) != 10_001 || !strings.HasPrefix(lines[10_000], `{"error":"`+says) {
		t.Errorf("%d lines of NDJSON, the last is %s", len(lines), lines[len(lines)-1])
	}
	must(t, db.Where("status = 'success' AND id NOT IN (?)", db.Model(&outbox.HistoryModel{}).Select("id").Where("status = 'success'").Limit(10_000)).
		Delete(&outbox.HistoryModel{}).Error)
	for _, format := range []string{"csv", "ndjson"} {
		hasNot(t, status(t, d.get("export?state=done&format="+format), 200), "missing")
	}
}

// TestWhoLeavesIsNoError: an export whose reader has gone ends, and the log has no error of it.
func TestWhoLeavesIsNoError(t *testing.T) {
	var said strings.Builder
	ctx, leave := context.WithCancel(t.Context())
	n := 0
	d := open(t, testdb.SQLite(t), admin.Options{})
	fill(t, d.db, "2000")
	pages, err := admin.New(d.p, admin.Options{Authorize: everything, Logger: slogTo(&said), Redact: func(_ string, args []byte) []byte {
		if n++; n == 200 {
			leave()
		}
		return args
	}})
	must(t, err)
	w := httptest.NewRecorder()
	pages.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "/export?format=ndjson&state=done", nil))
	if lines := strings.Count(w.Body.String(), "\n"); lines != 200 {
		t.Errorf("%d lines", lines)
	}
	hasNot(t, said.String(), "ERROR")
}
