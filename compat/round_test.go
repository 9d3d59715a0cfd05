package compat

import (
	"errors"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

var errUndo = errors.New("undo")

// round is what a task can go through. It is run under each setting that could come between.
func round(t *testing.T, db *gorm.DB, p *outbox.Plugin) {
	t.Helper()
	var rolledBack *outbox.TaskModel
	err := db.Transaction(func(tx *gorm.DB) error {
		o := order{Item: "never"}
		if err := tx.Create(&o).Error; err != nil {
			return err
		}
		rolledBack = dbtest.Create(t, tx, updateTx, orderArgs{o.ID, "never"})
		return errUndo
	})
	if !errors.Is(err, errUndo) {
		t.Fatal(err)
	}

	kept, outer := order{Item: "kept"}, (*outbox.TaskModel)(nil)
	err = db.Transaction(func(tx *gorm.DB) error {
		if err := tx.Create(&kept).Error; err != nil {
			return err
		}
		outer = dbtest.Create(t, tx, updateTx, orderArgs{kept.ID, "kept"})
		err := tx.Transaction(func(tx *gorm.DB) error {
			dbtest.Create(t, tx, updateTx, orderArgs{kept.ID, "nested"})
			return errUndo
		})
		if !errors.Is(err, errUndo) {
			t.Fatal(err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := dbtest.Count(t, db, &outbox.TaskModel{}); n != 1 {
		t.Fatalf("%d tasks after two rollbacks and a commit, want 1", n)
	}

	err = db.Transaction(func(tx *gorm.DB) error {
		holder := dbtest.Create(t, tx, updateTx, orderArgs{kept.ID, "later"}, outbox.Key("k"), outbox.StartAfter(time.Hour))
		_, err := outbox.Create(tx, updateTx, orderArgs{kept.ID, "twice"}, outbox.Key("k"))
		var duplicate *outbox.DuplicateKeyError
		if !errors.As(err, &duplicate) || duplicate.ID != holder.ID {
			t.Errorf("the same key: %v, want ErrDuplicateKey with the holder's id", err)
		}
		_, err = outbox.CreateBatch(tx, outbox.NewTask{Func: update, Args: orderArgs{kept.ID, "batch"}},
			outbox.NewTask{Func: update, Args: orderArgs{kept.ID, "batch"}, Options: []outbox.CreateOption{outbox.Key("k")}})
		if !errors.Is(err, outbox.ErrDuplicateKey) {
			t.Errorf("the same key in a batch: %v, want ErrDuplicateKey", err)
		}
		return tx.Create(&order{Item: "the transaction is usable"}).Error
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := dbtest.Count(t, db, &outbox.TaskModel{}); n != 2 {
		t.Fatalf("%d tasks after a refused batch, want 2", n)
	}

	stop := dbtest.Start(t, p)
	placed(t, db, update, "paid")
	placed(t, db, updateTx, "sent")
	if past := dbtest.Ended(t, db, outer.ID); past.Status != outbox.StatusSuccess {
		t.Errorf("the outer transaction's task ended as %s", past.Status)
	}
	wantStatus(t, db, kept.ID, "kept")
	if _, _, err := outbox.Lookup(db, rolledBack.ID); !errors.Is(err, outbox.ErrNotFound) {
		t.Errorf("the task that was rolled back: %v, want ErrNotFound", err)
	}

	_, failed := place(t, db, fail, "")
	past := dbtest.Ended(t, db, failed.ID)
	if past.Status != outbox.StatusError || deref(past.Error) != errFail.Error() {
		t.Errorf("failure ended as %s: %q", past.Status, deref(past.Error))
	}
	again, err := outbox.Rerun(db, failed.ID)
	if err != nil {
		t.Fatal(err)
	}
	if past = dbtest.Ended(t, db, again.ID); past.Status != outbox.StatusError || deref(past.RerunOf) != failed.ID {
		t.Errorf("re-run ended as %s, of %q", past.Status, deref(past.RerunOf))
	}

	if _, err := outbox.CancelKey(db, "k"); err != nil {
		t.Error(err)
	}
	o, waiting := place(t, db, updateTx, "cancelled", outbox.StartAfter(time.Hour))
	err = db.Transaction(func(tx *gorm.DB) error { return outbox.Cancel(tx, waiting.ID) })
	if err != nil {
		t.Error(err)
	}
	if past := dbtest.Ended(t, db, waiting.ID); past.Status != outbox.StatusCancelled {
		t.Errorf("cancelled task ended as %s", past.Status)
	}
	wantStatus(t, db, o.ID, "new")
	if err := outbox.Cancel(db, waiting.ID); !errors.Is(err, outbox.ErrNotFound) {
		t.Errorf("cancel again: %v, want ErrNotFound", err)
	}

	batch(t, db, update, orderArgs{kept.ID, "batch"}, 30)
	stop()
	if n := dbtest.Count(t, db, &outbox.ProcessModel{}); n != 0 {
		t.Errorf("%d processes registered after the end", n)
	}
}

// batch creates n tasks at once and waits for them all.
func batch(t *testing.T, db *gorm.DB, path string, args orderArgs, n int) {
	t.Helper()
	before := dbtest.Count(t, db, &outbox.HistoryModel{})
	tasks := make([]outbox.NewTask, n)
	for i := range tasks {
		tasks[i] = outbox.NewTask{Func: path, Args: args}
	}
	created, err := outbox.CreateBatch(db, tasks...)
	if err != nil {
		t.Fatal(err)
	}
	if len(created) != n {
		t.Fatalf("%d rows of a batch of %d", len(created), n)
	}
	dbtest.Eventually(t, "the batch is done", func() bool { return dbtest.Count(t, db, &outbox.TaskModel{}) == 0 })
	if got := dbtest.Count(t, db, &outbox.HistoryModel{}) - before; got != int64(n) {
		t.Errorf("%d rows of history for a batch of %d", got, n)
	}
	var bad []outbox.HistoryModel
	if err := db.Where("func = ? AND status <> ?", path, outbox.StatusSuccess).Limit(1).Find(&bad).Error; err != nil {
		t.Fatal(err)
	}
	for _, past := range bad {
		t.Errorf("a task of the batch ended as %s: %s", past.Status, deref(past.Error))
	}
}
