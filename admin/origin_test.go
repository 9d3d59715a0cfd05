package admin_test

import (
	"html"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// TestTheWayBackKeepsTheFilter: from a task to the list that it was opened from, also after the
// task has been discarded.
func TestTheWayBackKeepsTheFilter(t *testing.T) {
	d := open(t, testdb.SQLite(t), admin.Options{})
	bad, other := d.failed(), d.failed()
	text := status(t, d.get("tasks?state=failed&func=mail.send&limit=10"), 200)
	link := regexp.MustCompile(`href="\./(tasks/` + bad.ID + `[^"]*)"`).FindStringSubmatch(text)
	if link == nil {
		t.Fatal("no link to the task")
	}
	text = status(t, d.get(html.UnescapeString(link[1])), 200)
	const back = `tasks?func=mail.send&amp;limit=10&amp;state=failed`
	has(t, text, `<a href="./../`+back+`">← Failed tasks</a>`)
	list := html.UnescapeString(regexp.MustCompile(`name="list" value="([^"]+)"`).FindStringSubmatch(text)[1])

	has(t, status(t, d.post("tasks/"+bad.ID+"/discard", form(bad.Version, "list", list, "reason", "\x00")), 400), back, `name="list"`)
	w := d.post("tasks/"+bad.ID+"/discard", form(bad.Version, "list", list))
	status(t, w, 303)
	to := w.Header().Get("Location")
	has(t, to, "func=mail.send", "limit=10", "state=failed", "did=discard")
	has(t, status(t, d.get(strings.TrimPrefix(to, "./../../")), 200), "1 task discarded", other.ID)

	w = d.post("tasks/"+other.ID+"/rerun", form(other.Version, "list", list))
	status(t, w, 303)
	has(t, status(t, d.get(strings.TrimPrefix(w.Header().Get("Location"), "./../../")), 200), "1 task re-run", back)
	for _, bad := range []string{"odd=1", "state=odd", "%zz", "did=rerun"} {
		status(t, d.get("tasks/"+other.ID+"?list="+url.QueryEscape(bad)), 400)
	}
}

// TestWhereTasksRun: lists and tasks name the host, and a process leads to what it runs.
func TestWhereTasksRun(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{})
		here, there, lost := d.create(), d.create(), d.create()
		for task, process := range map[*outbox.TaskModel]string{here: "p-1", there: "p-2", lost: "p-3"} {
			must(t, db.Model(task).Updates(map[string]any{"state": "running", "process_id": process, "started_at": time.Now()}).Error)
		}
		for id, host := range map[string]string{"p-1": "host-a", "p-2": "host-b"} {
			must(t, db.Create(&outbox.ProcessModel{ID: id, Host: host, PID: 7, Slots: 4, Functions: outbox.JSON(`[]`), StartedAt: time.Now(), BeatAt: time.Now()}).Error)
		}
		has(t, status(t, d.get("tasks?state=running"), 200), "on <bdi>host-a</bdi>", "on <bdi>host-b</bdi>", "its process is gone")
		has(t, status(t, d.get("processes"), 200), `tasks?state=running&amp;process=p-1">1</a> of 4`)
		text := status(t, d.get("tasks?state=running&process=p-1"), 200)
		has(t, text, here.ID, `name="process" value="p-1"`)
		hasNot(t, text, there.ID, lost.ID)
		has(t, status(t, d.get("tasks/"+here.ID), 200), "<dt>Process</dt><dd><bdi>host-a</bdi> (7) <code>p-1")
		has(t, status(t, d.get("api/v1/tasks?state=running&process=p-2"), 200), there.ID, `"process_id":"p-2"`)
	})
}

// TestLongErrorsAreFolded: the first lines are read at once, the stack of a panic when a reader
// wants it.
func TestLongErrorsAreFolded(t *testing.T) {
	d := open(t, testdb.SQLite(t), admin.Options{})
	bad := d.failed()
	set := func(text string) string {
		must(t, d.db.Model(&outbox.HistoryModel{}).Where("id = ?", bad.ID).Update("error", text).Error)
		return status(t, d.get("tasks/"+bad.ID), 200)
	}
	text := set("panic: boom\n\ngoroutine 7 [running]:\n" + strings.Repeat("main.f()\n", 40) + "the end\n")
	has(t, text, `id="error-text" tabindex="0">panic: boom`, `<summary>36 more lines</summary>`, "the end", `data-copy="error-text stack-text"`)
	if strings.Index(text, "panic: boom") > strings.Index(text, `<details id="stack">`) || strings.Index(text, "the end") < strings.Index(text, `<details id="stack">`) {
		t.Error("it is folded elsewhere")
	}
	hasNot(t, set("one\ntwo\nthree"), `id="stack"`)
}

// TestParkedTasksAreCancelledFirst, since until a process runs their function there is little else
// to do.
func TestParkedTasksAreCancelledFirst(t *testing.T) {
	d := open(t, testdb.SQLite(t), admin.Options{})
	task := d.create()
	must(t, d.db.Model(task).Update("state", "parked").Error)
	for _, page := range []string{"tasks/" + task.ID, "tasks?state=parked"} {
		text := status(t, d.get(page), 200)
		if cancel, run := strings.Index(text, "Cancel…"), strings.Index(text, ">Run now"); cancel < 0 || cancel > run {
			t.Errorf("%s: Cancel at %d, Run now at %d", page, cancel, run)
		}
	}
}
