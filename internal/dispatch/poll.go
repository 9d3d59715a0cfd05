package dispatch

import (
	"context"
	"slices"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// poller is what the loop knows of its polls.
type poller struct {
	nextDue    *time.Timer // for the next poll
	polled     time.Time
	gap        time.Duration   // to the next poll, because the last one took long
	passedOver int             // polls in a row that found due what the claims after them did not
	foreign    map[string]bool // queues of others that had due tasks at the last poll
}

func newPoller() poller {
	return poller{nextDue: time.NewTimer(time.Hour), foreign: map[string]bool{}}
}

// minPollGap is the time from one poll to the next while every slot is taken. A poll that takes
// longer is followed by a gap of four times as long, at most maxPollGap.
const (
	minPollGap = 10 * time.Millisecond
	maxPollGap = 500 * time.Millisecond
)

// maxPollPause is from one poll to the next while a start time is known that is further away. The
// next scan may come long after it.
const maxPollPause = time.Hour

// tooSoon is how long to wait before the next poll: every commit of a busy application may wake the
// loop, while every slot is taken, or while a poll of thousands of queues takes long.
func (p *poller) tooSoon(full bool) time.Duration {
	gap := p.gap
	if full {
		gap = max(gap, minPollGap)
	}
	return gap - time.Since(p.polled)
}

// poll asks what is due, and when the next task will be.
func (d *dispatcher) poll(ctx context.Context) error {
	begun := time.Now()
	if err := d.pollOnce(ctx); err != nil {
		return err
	}
	p := &d.poller
	p.polled, p.gap = time.Now(), 0
	if took := p.polled.Sub(begun); took > minPollGap {
		p.gap = min(4*took, maxPollGap)
	}
	return nil
}

func (d *dispatcher) pollOnce(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, d.cfg.statementLimit())
	defer cancel()
	found, err := d.store.Poll(limited)
	if err != nil {
		return err
	}
	next := time.Duration(-1)
	var due []dialect.Partition
	clear(d.poller.foreign)
	for _, l := range found {
		if len(d.cfg.Queues) > 0 && !slices.Contains(d.cfg.Queues, l.Queue) {
			if l.Due {
				d.poller.foreign[l.Queue] = true
			}
			continue
		}
		if l.Due {
			due = append(due, l.Partition)
		}
		if l.Next >= 0 && (next < 0 || l.Next < next) {
			next = l.Next
		}
	}
	if next >= 0 {
		d.poller.nextDue.Reset(min(next, maxPollPause))
	}
	d.claimer.found(due)
	return nil
}

// lookAgain tells when to poll again after a poll that found something due and claims that found
// nothing. Where a claim locks each row that it examines, the claims of another process may have
// kept rows from ours for a moment. Without another look they would wait for the next scan, or
// RunDue would leave them.
func (d *dispatcher) lookAgain() (pause time.Duration, again bool) {
	p := &d.poller
	if d.store.Dialect.OneStatement() || d.store.Dialect.Serial() || p.passedOver == 3 {
		p.passedOver = 0
		return 0, false
	}
	p.passedOver++
	return 10 * time.Millisecond << p.passedOver, true
}
