package admin

import (
	"errors"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gorm-outbox/outbox"
)

func itoa(n int) string { return strconv.Itoa(n) }

// form reads a form that may have only these fields.
func (q *request) form(fields ...string) (url.Values, error) {
	if kind, _, err := mime.ParseMediaType(q.r.Header.Get("Content-Type")); err != nil || kind != "application/x-www-form-urlencoded" {
		return nil, fail(http.StatusUnsupportedMediaType, "A form must be of type application/x-www-form-urlencoded.")
	}
	if err := q.r.ParseForm(); err != nil {
		var big *http.MaxBytesError
		if asMax(err, &big) {
			return nil, err
		}
		return nil, fail(http.StatusBadRequest, "The form cannot be read.")
	}
	return q.r.PostForm, only(q.r.PostForm, fields...)
}

// changeForm makes the change that a button on a task's page asks for.
func (q *request) changeForm(id string, action Action) error {
	q.back = "tasks/" + url.PathEscape(id)
	if err := q.need(action); err != nil {
		return err
	}
	v, err := q.form("version", "at", "args", "reason", "list")
	if err != nil {
		return err
	}
	if err := q.from(v.Get("list")); err != nil {
		return err
	}
	list := filter{State: failed, Limit: defaultLimit}
	if q.origin != nil {
		list = *q.origin
		q.back += list.origin()
	}
	c := change{action: action, id: id, reason: strings.TrimSpace(v.Get("reason"))}
	if c.version, err = strconv.ParseInt(v.Get("version"), 10, 64); err != nil {
		return fail(http.StatusBadRequest, "version must be a number.")
	}
	if v.Has("args") {
		c.args = []byte(v.Get("args"))
	}
	created := ""
	if c.at, err = startOf(action, v.Get("at")); err == nil {
		created, err = q.change(c)
	}
	var p *problem
	if errors.As(err, &p) && (p.Status == http.StatusBadRequest || p.Status == http.StatusUnprocessableEntity && c.args != nil) {
		return q.refused(id, typed{action, v.Get("at"), c.reason}, c.args, p)
	}
	if err != nil {
		return err
	}
	target := id
	if created != "" {
		target = created
	}
	to, query := "tasks/"+url.PathEscape(target), url.Values{}
	if action == Discard {
		to, query = "tasks", list.values()
	} else if q.origin != nil {
		query.Set("list", list.values().Encode())
	}
	query.Set("did", string(action))
	query.Set("n", "1")
	return q.see(to + "?" + query.Encode())
}

// startOf reads the new start time for Reschedule. The other buttons of the form also send this
// field, empty or not.
func startOf(action Action, text string) (time.Time, error) {
	if action != Reschedule {
		return time.Time{}, nil
	}
	at, err := parseTime(text)
	if err != nil {
		return at, fail(http.StatusBadRequest, "at must be a time: 2006-01-02T15:04 in UTC, or 2006-01-02T15:04:05+01:00.")
	}
	return at, nil
}

// change makes the checks that forms and JSON have in common, and then the change.
func (q *request) change(c change) (string, error) {
	if err := checkReason(c.reason); err != nil {
		return "", err
	}
	if c.args != nil {
		if c.action != Rerun {
			return "", fail(http.StatusBadRequest, "Only a re-run takes other arguments.")
		}
		if err := q.need(EditArgs); err != nil {
			return "", err
		}
	}
	created, err := q.s.apply(q.ctx, q.actor, c)
	if errors.Is(err, outbox.ErrBadArgs) && (c.args != nil || q.can(ViewArgs) && q.s.opts.Redact == nil) { // the error may quote them
		_, why, _ := strings.Cut(err.Error(), outbox.ErrBadArgs.Error()+": ")
		err = fail(http.StatusUnprocessableEntity, "The arguments do not fit the function: %s.", shorten(why, 500))
	}
	return created, err
}

// bulkForm changes the picked tasks, or all tasks that the list showed. It asks for confirmation
// before a change that destroys.
func (q *request) bulkForm() error {
	v, err := q.form("action", "pick", "all", "filter", "asof", "count", "shown", "at", "reason", "confirmed")
	if err != nil {
		return err
	}
	action := Action(v.Get("action"))
	if !slices.Contains(bulkActions, action) {
		return fail(http.StatusBadRequest, "action must be one of: %s.", accepted(bulkActions))
	}
	if err := q.need(action); err != nil {
		return err
	}
	back, err := url.ParseQuery(v.Get("filter"))
	if err == nil {
		err = only(back, filterParams...)
	}
	if err != nil {
		return fail(http.StatusBadRequest, "filter must be that of a list.")
	}
	f, err := q.parseFilter(back)
	if err != nil {
		return err
	}
	q.back = f.url()
	b, err := readBulk(v, &f)
	var p *problem
	if errors.As(err, &p) {
		return q.listAgain(back, v, p)
	}
	if err != nil {
		return err
	}
	if destroys(b.action) && v.Get("confirmed") != "yes" {
		return q.render(http.StatusOK, "confirm", "Are you sure?", confirmation{Action: b.action, Count: min(b.count, maxCount), All: b.filter != nil, Form: v, Back: f.url()})
	}
	res, err := q.bulk(b)
	if err != nil {
		return err
	}
	to := f.values()
	to.Set("did", string(b.action))
	to.Set("n", itoa(res.Changed))
	if s := res.summary(); s != "" {
		to.Set("skipped", s)
	}
	return q.see("tasks?" + to.Encode())
}

// readBulk reads the change that the form of a list asks for.
func readBulk(v url.Values, f *filter) (b bulk, err error) {
	b = bulk{action: Action(v.Get("action")), reason: strings.TrimSpace(v.Get("reason"))}
	if b.at, err = startOf(b.action, v.Get("at")); err != nil {
		return b, err
	}
	if err := checkReason(b.reason); err != nil {
		return b, err
	}
	if v.Get("all") != "" {
		asOf, bad := time.Parse(time.RFC3339Nano, v.Get("asof"))
		count, wrong := strconv.Atoi(v.Get("count"))
		if bad != nil || wrong != nil || !storable(asOf) {
			return b, fail(http.StatusBadRequest, "asof and count must be those of the list.")
		}
		b.filter, b.asOf, b.count = f, asOf, count
		b.shown, err = parseShown(v.Get("shown"))
		return b, err
	}
	for _, text := range v["pick"] {
		id, version, ok := cutLast(text, ".")
		number, bad := strconv.ParseInt(version, 10, 64)
		if !ok || bad != nil {
			return b, fail(http.StatusBadRequest, "pick must be an id, a dot and a version.")
		}
		b.picked = append(b.picked, pick{id, number})
	}
	switch b.count = len(b.picked); {
	case b.count == 0:
		return b, fail(http.StatusBadRequest, "No task is picked: tick some, or choose all that match.")
	case b.count > maxLimit:
		return b, fail(http.StatusBadRequest, "At most %d tasks can be picked.", maxLimit)
	}
	return b, nil
}

func accepted(list []Action) string {
	words := make([]string, len(list))
	for i, a := range list {
		words[i] = string(a)
	}
	return strings.Join(words, ", ")
}

type confirmation struct {
	Action Action
	Count  int
	All    bool
	Form   url.Values
	Back   string
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// parseFilter also refuses a search in arguments that the sender may not see.
func (q *request) parseFilter(v url.Values) (filter, error) {
	f, err := parseFilter(v)
	if err == nil && f.Args != "" {
		err = q.need(ViewArgs)
	}
	return f, err
}
