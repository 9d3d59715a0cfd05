package dialect

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	_ "github.com/mattn/go-sqlite3"
)

// The loop, the writer and the heartbeat ask for statements at any time, also while another
// prepares what was asked for.
func TestStatementsAreAskedForAtOnce(t *testing.T) {
	pool, err := sql.Open("sqlite3", filepath.Join(t.TempDir(), "statements.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	c := NewStatementCache(pool)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for i := range 100 {
			c.get(fmt.Sprintf("SELECT %d", i))
		}
	})
	for range 1000 {
		c.Prepare(t.Context())
	}
}
