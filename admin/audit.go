package admin

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gorm-outbox/outbox"
)

type auditPage struct {
	Rows                []outbox.AuditModel
	Actor, Action, Task string
	Actions             []Action
	Older               string
}

func (q *request) audit() error {
	p, err := q.auditRows()
	if err != nil {
		return err
	}
	return q.render(http.StatusOK, "audit", "Audit", p)
}

func (q *request) auditRows() (p auditPage, err error) {
	v := q.r.URL.Query()
	if err := only(v, "actor", "action", "task", "before"); err != nil {
		return p, err
	}
	p = auditPage{Actor: strings.TrimSpace(v.Get("actor")), Action: v.Get("action"), Task: strings.TrimSpace(v.Get("task")), Actions: changes}
	if p.Action != "" && !slices.Contains(changes, Action(p.Action)) {
		return p, fail(http.StatusBadRequest, "action must be one of: %s.", accepted(changes))
	}
	tx := q.s.read(q.ctx).Order("id DESC").Limit(defaultLimit + 1)
	for column, text := range map[string]string{"actor = ?": p.Actor, "action = ?": p.Action, "task_id = ?": p.Task, "id < ?": v.Get("before")} {
		if text == "" {
			continue
		}
		if len(text) > maxParam || clean(text) != text {
			return p, fail(http.StatusBadRequest, "A parameter must be a text of at most %d bytes.", maxParam)
		}
		tx = tx.Where(column, text)
	}
	if err := tx.Find(&p.Rows).Error; err != nil {
		return p, err
	}
	if len(p.Rows) > defaultLimit {
		p.Rows = p.Rows[:defaultLimit]
		v.Set("before", p.Rows[defaultLimit-1].ID)
		p.Older = "audit?" + v.Encode()
	}
	return p, nil
}

type auditJSON struct {
	ID     string      `json:"id"`
	At     time.Time   `json:"at"`
	Actor  string      `json:"actor"`
	Action string      `json:"action"`
	TaskID string      `json:"task_id"`
	Func   string      `json:"func"`
	Reason string      `json:"reason"`
	Before outbox.JSON `json:"before"`
	After  outbox.JSON `json:"after"`
}

func auditOf(rows []outbox.AuditModel) []auditJSON {
	list := make([]auditJSON, len(rows))
	for i, m := range rows {
		list[i] = auditJSON{m.ID, m.At.UTC(), m.Actor, m.Action, m.TaskID, m.Func, m.Reason, m.Before, m.After}
	}
	return list
}

func (q *request) apiAudit() error {
	p, err := q.auditRows()
	if err != nil {
		return err
	}
	out := listJSON{Data: auditOf(p.Rows)}
	if p.Older != "" {
		out.NextCursor = p.Rows[len(p.Rows)-1].ID
	}
	return q.json(out)
}
