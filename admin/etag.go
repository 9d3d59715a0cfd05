package admin

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
)

// unchanged answers a request with 304 if the sender already has the content. A page that refreshes
// itself sends the tag of its last response. Texts that only tell the time of the request do not
// count for the tag.
func (q *request) unchanged(body []byte, times ...string) bool {
	if q.r.Method != http.MethodGet && q.r.Method != http.MethodHead {
		return false
	}
	for _, text := range times {
		if text != "" {
			body = bytes.ReplaceAll(body, []byte(text), nil)
		}
	}
	sum := sha256.Sum256(body)
	tag := `"` + hex.EncodeToString(sum[:12]) + `"`
	q.w.Header().Set("ETag", "W/"+tag) // weak: a proxy may compress the body
	known := strings.Split(strings.Join(q.r.Header.Values("If-None-Match"), ","), ",")
	if !slices.ContainsFunc(known, func(s string) bool {
		s = strings.TrimSpace(s)
		return s == "*" || strings.TrimPrefix(s, "W/") == tag
	}) {
		return false
	}
	q.w.Header().Del("Content-Type")
	q.w.WriteHeader(http.StatusNotModified)
	return true
}
