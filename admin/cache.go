package admin

import (
	"context"
	"time"
)

// cached is an answer that may be some seconds old. Many open pages then cost the database no more
// than one page.
type cached struct {
	turn  chan struct{} // held by the request that asks; other requests wait for its answer
	at    time.Time
	value any
	known bool
	old   bool // a change has happened since: ask again, but keep the value in case that fails
}

const cacheAge = 10 * time.Second

// cache returns the cached value of a key, or asks for it. With an error it returns the last known
// value and its time.
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
		if v, ok := recall(true); ok { // the previous request has asked
			return v, time.Time{}, nil
		}
		s.mu.Lock()
		c.old = false // a change during ask makes the answer old again
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

// remembered is the last known value of a key, however old it is.
func remembered[T any](s *site, key string) (value T, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.cached[key]; c != nil && c.known {
		return c.value.(T), true
	}
	return value, false
}

// forget makes the next page ask again, so that its figures include the last change.
func (s *site) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.cached {
		c.old = true
	}
}
