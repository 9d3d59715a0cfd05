package text

import (
	"math/rand/v2"
	"strings"
	"testing"
	"testing/quick"
	"unicode/utf8"
)

func TestSanitize(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"left alone", "héllo \n\t😀", "héllo \n\t😀"},
		{"NUL replaced", "a\x00b", "a\uFFFDb"},
		{"bad UTF-8 replaced", "a\xffb\xc3", "a\uFFFDb\uFFFD"},
		{"exactly the limit", strings.Repeat("x", 300), strings.Repeat("x", 300)},
		{"cut and marked", strings.Repeat("x", 301), strings.Repeat("x", 300-len(" … (cut)")) + " … (cut)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Sanitize(c.in, 300); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// Every limit of a text is at least 255 bytes.
func TestSanitizeIsStorable(t *testing.T) {
	pieces := []string{"a", "é", "€", "😀", "\x00", "\xff", "\xf0\x9f", "\uFFFD", " "}
	storable := func(seed uint64, limit16 uint16) bool {
		r := rand.New(rand.NewPCG(seed, 1))
		limit := 255 + int(limit16%512)
		var b strings.Builder
		for n := r.IntN(2 * limit); n > 0; n-- {
			b.WriteString(pieces[r.IntN(len(pieces))])
		}
		in := b.String()
		got := Sanitize(in, limit)
		kept := utf8.RuneCountInString(got)
		switch {
		case !utf8.ValidString(got), strings.Contains(got, "\x00"), len(got) > limit:
			t.Logf("limit %d: %q gives %q of %d bytes", limit, in, got, len(got))
			return false
		case strings.HasSuffix(got, "(cut)") && len(got) < limit-2*utf8.UTFMax:
			t.Logf("limit %d: only %d bytes (%d characters) are kept", limit, len(got), kept)
			return false
		}
		return true
	}
	if err := quick.Check(storable, &quick.Config{MaxCount: 3000}); err != nil {
		t.Error(err)
	}
}
