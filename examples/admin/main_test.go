package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestTheShopShowsWhatItDoes(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	read, write := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, write, "127.0.0.1:0", filepath.Join(t.TempDir(), "shop.db")) }()
	var url, user, password string
	lines := bufio.NewScanner(read)
	for password == "" && lines.Scan() {
		line := lines.Text()
		if m := regexp.MustCompile(`http://\S+`).FindString(line); m != "" {
			url = m
		}
		if m := regexp.MustCompile(`user (\S+), password (\S+)`).FindStringSubmatch(line); m != nil {
			user, password = m[1], m[2]
		}
	}
	go io.Copy(io.Discard, read)
	get := func(path string) (int, string) {
		r, err := http.NewRequestWithContext(t.Context(), "GET", url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.SetBasicAuth(user, password)
		w, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Body.Close()
		body, err := io.ReadAll(w.Body)
		if err != nil {
			t.Fatal(err)
		}
		return w.StatusCode, string(body)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(30 * time.Second); ; <-tick.C {
		code, text := get("tasks?state=done")
		if code == 200 && strings.Contains(text, "mail.sendReceipt") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("status %d, no receipt was sent:\n%s", code, text)
		}
	}
	user = "other"
	if code, _ := get(""); code != 401 {
		t.Errorf("anybody may look: %d", code)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestWithoutACompiler(t *testing.T) {
	err := withC(errors.New("Binary was compiled with 'CGO_ENABLED=0', go-sqlite3 requires cgo to work. This is a stub"))
	if !strings.Contains(err.Error(), "needs a C compiler") {
		t.Errorf("it says %v", err)
	}
	if err := errors.New("disk full"); withC(err) != err {
		t.Error("other errors are not as they were")
	}
}
