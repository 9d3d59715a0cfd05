package admin

import (
	"context"
	"time"
)

// cached is an answer that may be some seconds old, so that many open pages cost the database no
// more than one.
type cached struct {
	turn  chan struct{} // held by the request that asks; the others wait for its answer
	at    time.Time
	value any
	known bool
	old   bool // something has changed since: ask again, but keep it in case that fails
}

const cacheAge = 10 * time.Second

// cache returns what is remembered under a key, or asks. With an error it returns what was known
// last, and since when.
func cache[T any](ctx context.Context, s *site, key string, ask func() (T, error)) (value T, stale time.Time, err error) {
	s.mu.Lock()
	c := s.cached[key]
	if c == nil {
		c = &cached{turn: make(chan struct{}, 1)}
		s.cached[key] = c
	}
	s.mu.Unlock()
	recall := func(fresh bool) (T, bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !c.known || fresh && (c.old || time.Since(c.at) >= cacheAge) {
			return value, false
		}
		stale = c.at
		return c.value.(T), true
	}
	if v, ok := recall(true); ok {
		return v, time.Time{}, nil
	}
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
		if v, ok := recall(true); ok { // by the request before this one
			return v, time.Time{}, nil
		}
		s.mu.Lock()
		c.old = false // a change while we ask makes the answer old again
		s.mu.Unlock()
		value, err = ask()
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		s.mu.Lock()
		c.old = true
		s.mu.Unlock()
		v, ok := recall(false)
		if !ok {
			stale = time.Time{}
		}
		return v, stale, err
	}
	s.mu.Lock()
	c.at, c.value, c.known = time.Now(), value, true
	s.mu.Unlock()
	return value, time.Time{}, nil
}

// remembered is what is known under a key, however old.
func remembered[T any](s *site, key string) (value T, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.cached[key]; c != nil && c.known {
		return c.value.(T), true
	}
	return value, false
}

// forget makes the next page ask again: after a change the figures should show it.
func (s *site) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.cached {
		c.old = true
	}
}
