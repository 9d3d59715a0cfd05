package admin

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

const (
	hashScheme = "pbkdf2-sha256"
	iterations = 600_000 // recommended by OWASP
	realm      = `Basic realm="outbox", charset="UTF-8"`
)

// maxWaiting is the number of requests that may wait for the check of a password. Each check takes
// some tenths of a second.
const maxWaiting = 16

// errBusy refuses requests beyond maxWaiting.
var errBusy = errors.New("admin: too many passwords wait to be tried")

// errBasic makes the browser ask for a password. An application with another way to sign in must
// not return it.
var errBasic = fmt.Errorf("%w: basic", ErrUnauthenticated)

// HashPassword makes a password's hash for BasicAuth: PBKDF2 with SHA-256, 600,000 iterations and a
// random salt.
func HashPassword(password string) (string, error) {
	salt := make([]byte, 16)
	rand.Read(salt)
	sum, err := pbkdf2.Key(sha256.New, password, salt, iterations, sha256.Size)
	if err != nil {
		return "", fmt.Errorf("admin: hash password: %w", err)
	}
	enc := base64.RawStdEncoding.EncodeToString
	return strings.Join([]string{hashScheme, strconv.Itoa(iterations), enc(salt), enc(sum)}, "$"), nil
}

// BasicAuth is an Options.Authorize for small teams. The users may do everything; each has a hash
// from HashPassword. It panics if users is empty or if a value is not such a hash. Serve the pages
// with TLS only: the browser sends the password with every request.
//
// Names and passwords are compared in constant time and one at a time, so that guessing cannot use
// all processors. A request with a password that was right before does not wait. At most 16 other
// requests wait; a further request is told to try again (503). BasicAuth does not slow down
// guessing in any other way. To let some users do less, wrap it:
//
//	basic := admin.BasicAuth(users)
//	authorize := func(r *http.Request, a admin.Action) (admin.Actor, error) {
//		actor, err := basic(r, a)
//		if err == nil && actor.Name != "alice" && a != admin.View {
//			err = errors.New("only alice")
//		}
//		return actor, err
//	}
func BasicAuth(users map[string]string) func(*http.Request, Action) (Actor, error) {
	if len(users) == 0 {
		panic("admin: BasicAuth without users")
	}
	return newBasic(users).authorize
}

func newBasic(users map[string]string) *basic {
	b := &basic{users: map[string]hash{}, key: make([]byte, 32), turn: make(chan struct{}, 1), waiting: make(chan struct{}, maxWaiting), known: map[string][]byte{}}
	rand.Read(b.key)
	for name, text := range users {
		h, err := parseHash(text)
		if err != nil || name == "" || strings.Contains(name, ":") {
			panic(fmt.Sprintf("admin: BasicAuth: user %q needs a name without colon and what HashPassword returns", name))
		}
		b.users[name] = h
		if h.rounds > b.none.rounds {
			b.none = h
		}
	}
	return b
}

type hash struct {
	rounds    int
	salt, sum []byte
}

type basic struct {
	users map[string]hash
	none  hash // unknown names take as long as the slowest hash
	key   []byte

	turn    chan struct{} // held while a password is checked
	waiting chan struct{} // held while a password waits and is checked

	mu sync.Mutex
	// For each user, the MAC of a password that was right, so that the next request is fast.
	known map[string][]byte
}

func (b *basic) authorize(r *http.Request, _ Action) (Actor, error) {
	name, password, ok := r.BasicAuth()
	if !ok {
		return Actor{}, errBasic
	}
	mac := hmac.New(sha256.New, b.key)
	mac.Write([]byte(name + ":" + password))
	sum := mac.Sum(nil)
	if b.knows(name, sum) { // a known password does not wait for guesses
		return Actor{Name: name}, nil
	}
	select {
	case b.waiting <- struct{}{}:
		defer func() { <-b.waiting }()
	default:
		return Actor{}, errBusy
	}
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-r.Context().Done():
		return Actor{}, errBasic
	}
	if b.knows(name, sum) { // the previous request has checked it
		return Actor{Name: name}, nil
	}
	h, exists := b.users[name]
	if !exists {
		h = b.none
	}
	got, err := pbkdf2.Key(sha256.New, password, h.salt, h.rounds, len(h.sum))
	if err != nil || subtle.ConstantTimeCompare(got, h.sum) != 1 || !exists {
		return Actor{}, errBasic
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.known[name] = sum
	return Actor{Name: name}, nil
}

func (b *basic) knows(name string, sum []byte) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return hmac.Equal(b.known[name], sum)
}

func parseHash(text string) (h hash, err error) {
	parts := strings.Split(text, "$")
	if len(parts) != 4 || parts[0] != hashScheme {
		return h, fmt.Errorf("not %s", hashScheme)
	}
	if h.rounds, err = strconv.Atoi(parts[1]); err != nil || h.rounds < 100_000 || h.rounds > 100_000_000 {
		return h, fmt.Errorf("%q rounds", parts[1])
	}
	if h.salt, err = base64.RawStdEncoding.DecodeString(parts[2]); err != nil || len(h.salt) < 16 {
		return h, fmt.Errorf("salt")
	}
	if h.sum, err = base64.RawStdEncoding.DecodeString(parts[3]); err != nil || len(h.sum) != sha256.Size {
		return h, fmt.Errorf("sum")
	}
	return h, nil
}
