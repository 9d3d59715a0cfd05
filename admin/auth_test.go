package admin_test

import (
	"context"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorm-outbox/outbox/admin"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

func TestBasicAuth(t *testing.T) {
	hash, err := admin.HashPassword("pass:wörd")
	must(t, err)
	d := open(t, testdb.SQLite(t), admin.Options{Authorize: admin.BasicAuth(map[string]string{"alice": hash})})
	send := func(user, password string) int {
		r, _ := http.NewRequest("GET", "/", nil)
		r.SetBasicAuth(user, password)
		return d.send("GET", "", "", "", "Authorization", r.Header.Get("Authorization")).Code
	}
	for range 2 {
		if a, b, c, e := send("alice", "pass:wörd"), send("alice", "pass"), send("bob", "pass:wörd"), send("", ""); a != 200 || b != 401 || c != 401 || e != 401 {
			t.Errorf("got %d, %d, %d, %d", a, b, c, e)
		}
	}
	w := d.get("")
	status(t, w, 401)
	if w.Header().Get("WWW-Authenticate") == "" {
		t.Error("the browser is not told to ask")
	}
	for name, users := range map[string]map[string]string{"no users": nil, "plain text": {"a": "secret"}, "a colon": {"a:b": hash}, "no name": {"": hash}, "weak": {"a": strings.Replace(hash, "600000", "10", 1)}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			admin.BasicAuth(users)
		}()
	}
}

// To ask who somebody is may take longer than a page may keep the database busy.
func TestSlowAuthorizeLeavesThePageItsTime(t *testing.T) {
	t.Parallel()
	const limit = 2 * time.Second
	d := open(t, testdb.SQLite(t), admin.Options{QueryTimeout: limit, Authorize: func(r *http.Request, a admin.Action) (admin.Actor, error) {
		if a == admin.View {
			<-time.After(limit + limit/10)
		}
		return everything(r, a)
	}})
	status(t, d.get(""), 200)
}

// TestGuessingHoldsUpNobody has twenty wrong passwords wait to be tried while a user who is in
// already asks for a page.
func TestGuessingHoldsUpNobody(t *testing.T) {
	salt := make([]byte, 16)
	sum, err := pbkdf2.Key(sha256.New, "right", salt, 200_000, sha256.Size)
	must(t, err)
	enc := base64.RawStdEncoding.EncodeToString
	authorize := admin.BasicAuth(map[string]string{"alice": "pbkdf2-sha256$200000$" + enc(salt) + "$" + enc(sum)})
	ctx, giveUp := context.WithCancel(t.Context())
	try := func(password string) error {
		r, _ := http.NewRequestWithContext(ctx, "GET", "/", nil)
		r.SetBasicAuth("alice", password)
		_, err := authorize(r, admin.View)
		return err
	}
	must(t, try("right"))
	var guesses sync.WaitGroup
	var begun, open atomic.Int64
	for range 20 {
		open.Add(1)
		guesses.Go(func() {
			begun.Add(1)
			if try("wrong") == nil {
				t.Error("a wrong password was right")
			}
			open.Add(-1)
		})
	}
	for begun.Load() < 20 {
		runtime.Gosched()
	}
	must(t, try("right"))
	if n := open.Load(); n < 10 {
		t.Errorf("only %d of 20 guesses are still open: the user has waited for the others", n)
	}
	giveUp() // a user who has gone is not tried
	guesses.Wait()
}

// TestMoreGuessesThanWait: beyond those that wait for their turn, who asks is told to come again,
// and costs nothing.
func TestMoreGuessesThanWait(t *testing.T) {
	salt := make([]byte, 16)
	sum, err := pbkdf2.Key(sha256.New, "right", salt, 200_000, sha256.Size)
	must(t, err)
	enc := base64.RawStdEncoding.EncodeToString
	d := open(t, testdb.SQLite(t), admin.Options{Authorize: admin.BasicAuth(map[string]string{"alice": "pbkdf2-sha256$200000$" + enc(salt) + "$" + enc(sum)})})
	var guesses sync.WaitGroup
	var busy, wrong atomic.Int64
	for range 100 {
		guesses.Go(func() {
			w := d.send("GET", "api/v1/audit", "", "", "Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("alice:wrong")))
			switch {
			case w.Code == 503 && w.Header().Get("Retry-After") != "":
				busy.Add(1)
			case w.Code == 401:
				wrong.Add(1)
			default:
				t.Errorf("status %d", w.Code)
			}
		})
	}
	guesses.Wait()
	if busy.Load() == 0 || wrong.Load() < 16 {
		t.Errorf("%d are told to come again, %d that they are wrong", busy.Load(), wrong.Load())
	}
}

// TestUnknownNamesCostTheMost: by how long an answer takes nobody learns who is a user.
func TestUnknownNamesCostTheMost(t *testing.T) {
	salt := make([]byte, 16)
	hash := func(rounds int) string {
		sum, err := pbkdf2.Key(sha256.New, "right", salt, rounds, sha256.Size)
		must(t, err)
		enc := base64.RawStdEncoding.EncodeToString
		return "pbkdf2-sha256$" + strconv.Itoa(rounds) + "$" + enc(salt) + "$" + enc(sum)
	}
	users := map[string]string{"slow": hash(400_000)}
	for range 10 {
		users["quick"+strconv.Itoa(len(users))] = hash(100_000)
	}
	for range 3 { // the order of a map changes
		if rounds := admin.RoundsOfUnknown(users); rounds != 400_000 {
			t.Errorf("an unknown name costs %d rounds", rounds)
		}
	}
}
