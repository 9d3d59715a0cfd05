package outbox

import "testing"

func TestArgsAsTheyAreInARow(t *testing.T) {
	got, err := encodeArgs(nil, JSON(` {"a": 1, "html": "<b>"}`), 100)
	if want := `{"a":1,"html":"<b>"}`; err != nil || string(got) != want {
		t.Errorf("got %s, %v; want %s", got, err, want)
	}
}
