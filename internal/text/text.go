// Package text prepares texts from outside the library for errors and for columns. It knows nothing
// of tasks.
package text

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Quote quotes a text from outside the library for an error, and shortens it.
func Quote(s string) string {
	if len(s) > 80 {
		return fmt.Sprintf("%.80q…", s)
	}
	return fmt.Sprintf("%q", s)
}

// Sanitize returns a text that every database can store: valid UTF-8 without NUL, and at most limit
// bytes.
func Sanitize(s string, limit int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	s = strings.ReplaceAll(s, "\x00", "\uFFFD")
	if len(s) <= limit {
		return s
	}
	const mark = " … (cut)"
	s = s[:max(0, limit-len(mark))]
	for len(s) > 0 && !utf8.ValidString(s[max(0, len(s)-utf8.UTFMax):]) && !utf8.RuneStart(s[len(s)-1]) {
		s = s[:len(s)-1]
	}
	return strings.ToValidUTF8(s, "") + mark
}
