// Package text makes texts of others fit for errors and for columns. It knows nothing of tasks.
package text

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Quote shows a text of somebody else in an error, shortened.
func Quote(s string) string {
	if len(s) > 80 {
		return fmt.Sprintf("%.80q…", s)
	}
	return fmt.Sprintf("%q", s)
}

// Sanitize makes a text that every database stores: valid UTF-8 without NUL, of at most limit
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
