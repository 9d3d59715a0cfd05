package main

import (
	"crypto/rand"
	"net"
	"net/http"
	"time"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
)

// servePages shows what the story does to those who keep a shop running. The password is new with
// every start.
func (s *story) servePages(plugin *outbox.Plugin, addr string) (stop func() error, err error) {
	user, password := "demo", rand.Text()[:12]
	hash, err := admin.HashPassword(password)
	if err != nil {
		return nil, err
	}
	pages, err := admin.New(plugin, admin.Options{Title: "Orders", Authorize: admin.BasicAuth(map[string]string{user: hash})})
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/admin/", http.StripPrefix("/admin", pages))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go server.Serve(listener) // ends with stop
	s.say("The administrator's pages: http://%s/admin/ for user %s, password %s.", listener.Addr(), user, password)
	return server.Close, nil
}
