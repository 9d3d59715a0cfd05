package admin

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gorm-outbox/outbox"
)

// notice says what the last form has done. It comes from the URL, so it has only known words and
// numbers, and no text.
type notice struct {
	Did     Action
	N       int
	Skipped []countOf
	More    bool
}

// noticed reads what the last form has done. It keeps the notice only if the audit says that the
// sender has just done it: a link from another person, or the URL of yesterday, shows nothing.
func (q *request) noticed(v url.Values) error {
	n, err := parseNotice(v)
	if err != nil || n == nil || n.N == 0 {
		q.said = n
		return err
	}
	at, err := q.now()
	if err != nil {
		return err
	}
	var last []outbox.AuditModel // changes by other actors may be among them
	err = q.s.read(q.ctx).Select("id, at, actor, action").Order("id DESC").Limit(n.N + maxLimit).Find(&last).Error
	if err != nil {
		q.problem(err)
		return nil
	}
	left := n.N
	for _, m := range last {
		if m.Actor == auditName(q.actor) && m.Action == string(n.Did) && at.Sub(m.At) < q.s.bulkLimit+time.Minute {
			left--
		}
	}
	if left <= 0 {
		q.said = n
	}
	return nil
}

func parseNotice(v url.Values) (*notice, error) {
	if !v.Has("did") && !v.Has("n") && !v.Has("skipped") {
		return nil, nil
	}
	n := &notice{Did: Action(v.Get("did"))}
	if !slices.Contains(changes, n.Did) {
		return nil, fail(http.StatusBadRequest, "did must be one of: %s.", accepted(changes))
	}
	number := func(text string) int {
		count, err := strconv.Atoi(text)
		if err != nil || count < 0 || count > maxCount {
			return -1
		}
		return count
	}
	if n.N = number(v.Get("n")); n.N < 0 {
		return nil, fail(http.StatusBadRequest, "n must be a number from 0 to %d.", maxCount)
	}
	if v.Get("skipped") == "" {
		return n, nil
	}
	for part := range strings.SplitSeq(v.Get("skipped"), "~") {
		why, count, _ := strings.Cut(part, ".")
		switch left := number(count); {
		case left < 1 || why != "more" && !slices.Contains(skipReasons, why):
			return nil, fail(http.StatusBadRequest, "skipped must be such as running.2~gone.1, of: %s.", strings.Join(skipReasons, ", "))
		case why == "more":
			n.More = true
		default:
			n.Skipped = append(n.Skipped, countOf{strings.ReplaceAll(why, "_", " "), left})
		}
	}
	return n, nil
}
