package scenarios_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// What docs/operations.md recommends for each mode of PgBouncer, and what it warns of.
func TestPgBouncer(t *testing.T) {
	t.Parallel()
	server := testdb.StartPostgres(t)
	for _, c := range []struct {
		mode, params, refused string
	}{
		{"session", "", ""},
		{"transaction", "&default_query_exec_mode=exec", ""},
		{"transaction", "&default_query_exec_mode=simple_protocol", ""},
		{"transaction", "&default_query_exec_mode=cache_describe", ""},
		{"transaction", "", "default_query_exec_mode=exec"},
	} {
		t.Run(c.mode+c.params, func(t *testing.T) {
			dsn := server.PgBouncer("pool_mode = "+c.mode, "default_pool_size = 20", "ignore_startup_parameters = extra_float_digits")
			open := func() *gorm.DB {
				db, err := gorm.Open(postgres.Open(dsn+c.params), &gorm.Config{Logger: logger.Discard})
				if err != nil {
					t.Fatal(err)
				}
				pool, err := db.DB()
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = pool.Close() })
				return db
			}
			db := open()
			p := dbtest.Install(t, db, outbox.Options{}, func(p *outbox.Plugin) {
				p.Handle("pooled.Tx", func(ctx context.Context, tx *gorm.DB) error {
					task, _ := outbox.TaskFrom(ctx)
					return tx.Exec("INSERT INTO pooled (task) VALUES (?)", task.ID).Error
				})
				p.Handle("pooled.Plain", func(context.Context) error { return nil })
			})
			if c.refused != "" {
				if err := p.Run(t.Context()); err == nil || !strings.Contains(err.Error(), c.refused) {
					t.Errorf("Run says %v, but not %q", err, c.refused)
				}
				return
			}
			for _, s := range []string{"CREATE TABLE IF NOT EXISTS pooled (task text PRIMARY KEY)", "TRUNCATE pooled, outbox_history"} {
				if err := db.Exec(s).Error; err != nil {
					t.Fatal(err)
				}
			}
			dbtest.Start(t, p)
			producer := open()
			if err := producer.Use(outbox.New(outbox.Options{ProducerOnly: true})); err != nil {
				t.Fatal(err)
			}
			const n = 100
			for range n {
				dbtest.Create(t, producer, "pooled.Plain", nil)
				dbtest.Create(t, producer, "pooled.Tx", nil)
			}
			dbtest.Eventually(t, "all tasks end", func() bool { return dbtest.Count(t, db, &outbox.HistoryModel{}) == 2*n })
			var done, effects int64
			if err := errors.Join(db.Model(&outbox.HistoryModel{}).Where("status = ?", string(outbox.StatusSuccess)).Count(&done).Error,
				db.Table("pooled").Count(&effects).Error); err != nil {
				t.Fatal(err)
			}
			if done != 2*n || effects != n {
				t.Errorf("of %d tasks %d succeeded, of %d transactions %d had an effect", 2*n, done, n, effects)
			}
		})
	}
}

// Settings that change what is read are refused at the start, or do not matter.
func TestPostgresSettings(t *testing.T) {
	t.Parallel()
	dsn := testdb.PostgresDSN(t)
	for _, c := range []struct{ params, refused string }{
		{"&datestyle=German&default_query_exec_mode=simple_protocol", "datestyle=ISO"},
		{"&datestyle=SQL,+DMY&default_query_exec_mode=exec", "datestyle=ISO"},
		{"&datestyle=German", ""},
		{"&client_encoding=LATIN1", "client_encoding=UTF8"},
		{"&intervalstyle=sql_standard&bytea_output=escape&standard_conforming_strings=off&timezone=Pacific/Chatham&default_query_exec_mode=exec", ""},
		{"&intervalstyle=iso_8601&timezone=America/St_Johns&default_query_exec_mode=simple_protocol", ""},
	} {
		t.Run(c.params, func(t *testing.T) {
			db, err := gorm.Open(postgres.Open(dsn+c.params), &gorm.Config{Logger: logger.Discard})
			if err != nil {
				t.Fatal(err)
			}
			pool, err := db.DB()
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			p := outbox.New(outbox.Options{})
			p.Handle("settings.Do", func(context.Context) error { return nil })
			if err := db.Use(p); err != nil {
				t.Fatal(err)
			}
			if c.refused == "" {
				if err := p.Migrate(t.Context()); err != nil {
					t.Fatal(err)
				}
				task := dbtest.Create(t, db, "settings.Do", nil)
				if n, err := p.RunDue(t.Context()); err != nil || n != 1 {
					t.Errorf("RunDue ran %d: %v", n, err)
				}
				if past := dbtest.Ended(t, db, task.ID); past.Status != outbox.StatusSuccess || !past.CreatedAt.Equal(task.CreatedAt) {
					t.Errorf("%s, created at %v instead of %v", past.Status, past.CreatedAt, task.CreatedAt)
				}
				return
			}
			_, due := p.RunDue(t.Context())
			for name, err := range map[string]error{"Migrate": p.Migrate(t.Context()), "Run": p.Run(t.Context()), "RunDue": due} {
				if err == nil || !strings.Contains(err.Error(), c.refused) {
					t.Errorf("%s says %v, but not %q", name, err, c.refused)
				}
			}
		})
	}
}
