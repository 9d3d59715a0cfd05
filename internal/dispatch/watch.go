package dispatch

import (
	"context"
	"time"
)

// A process watches the heartbeats of the others. Age alone proves nothing: after an outage of the
// database every heartbeat is old. So a process is dead when its row is gone, or when an observer
// has seen its count of heartbeats stand still for a whole limit of the observer's own monotonic
// clock, during which the observer's own heartbeats succeeded. The observer beats and looks once
// more when the earliest such limit ends.

// observations of other processes: their count of beats, and since when it has stood still.
type observations map[string]observation

type observation struct {
	beats int64
	since time.Time
}

// oldest is since when the count that has stood still for longest has done so.
func (seen observations) oldest(own string) (since time.Time, some bool) {
	for id, o := range seen {
		if id != own && (!some || o.since.Before(since)) {
			since, some = o.since, true
		}
	}
	return since, some
}

// observe looks at the other processes, expires dead ones, rescues their tasks, and brings back
// parked tasks.
func (d *dispatcher) observe(ctx context.Context, seen observations) {
	limited, cancel := context.WithTimeout(ctx, d.cfg.statementLimit())
	defer cancel()
	w, err := d.store.Watch(limited, d.lease.owner())
	now := time.Now()
	if err == nil {
		for id, beats := range w.Beats {
			o, known := seen[id]
			if id == d.lease.owner() || !known || o.beats != beats {
				seen[id] = observation{beats, now}
				continue
			}
			if now.Sub(o.since) < d.cfg.HeartbeatLimit {
				continue
			}
			var expired bool
			if expired, err = d.store.Expire(limited, id, beats); err != nil {
				break
			}
			delete(seen, id) // if it has beaten after all, the next look sees it anew
			if expired {
				d.log.Warn("outbox: process expired, rescuing its tasks", "process", id, "silent", now.Sub(o.since))
				w.Orphans = true
			}
		}
		for id := range seen {
			if _, there := w.Beats[id]; !there {
				delete(seen, id)
			}
		}
	}
	if err == nil && w.Orphans {
		err = d.rescue(limited)
	}
	if err == nil && w.Parked {
		err = d.unpark(limited)
	}
	if err != nil && ctx.Err() == nil {
		clear(seen)
		d.outages.failed("watch other processes", err)
		return
	}
	d.outages.recovered("watch other processes")
	d.recovery.compare(w.Owned)
}
