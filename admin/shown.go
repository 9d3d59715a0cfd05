package admin

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"iter"
	"net/http"
	"strconv"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
)

// shown is the set of tasks that somebody has seen, each at its version: what a change of "all that
// match" may touch. A form has to carry it, so of each it has only some bytes of a hash: of a
// million foreign tasks one in a hundred passes.
type shown map[mark]bool

type mark [5]byte

func markOf(id string, version int64) mark {
	sum := sha256.Sum256([]byte(id + "." + strconv.FormatInt(version, 10)))
	return mark(sum[:])
}

// seal is a set as a form and JSON have it.
func seal(marks []mark) string {
	text := make([]byte, 0, len(marks)*len(mark{}))
	for _, m := range marks {
		text = append(text, m[:]...)
	}
	return base64.RawURLEncoding.EncodeToString(text)
}

func sealRows(rows []row) string {
	marks := make([]mark, len(rows))
	for i, r := range rows {
		marks[i] = markOf(r.ID, r.Version)
	}
	return seal(marks)
}

// parseShown reads a set; the empty text is none.
func parseShown(text string) (shown, error) {
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if n := len(mark{}); err != nil || len(raw)%n != 0 || len(raw) > n*maxCount {
		return nil, fail(http.StatusBadRequest, "shown must be that of the list.")
	}
	if len(raw) == 0 {
		return nil, nil
	}
	set := shown{}
	for ; len(raw) > 0; raw = raw[len(mark{}):] {
		set[mark(raw)] = true
	}
	return set, nil
}

// seen is the set of what a filter finds, of maxCount tasks at most and in the order of walk, and
// how many it finds, up to one more than that.
func (s *site) seen(ctx context.Context, f filter, at time.Time) (set string, n int, err error) {
	list, err := s.sources(ctx, f, at)
	if err != nil {
		return "", 0, err
	}
	var marks []mark
	for _, src := range list {
		src.columns = "id, version"
		if err := s.scan(s.ordered(ctx, src, f, nil).Limit(maxCount+1-len(marks)), &marks); err != nil {
			return "", 0, err
		}
		if len(marks) > maxCount {
			return seal(marks[:maxCount]), len(marks), nil
		}
	}
	return seal(marks), len(marks), nil
}

// scan reads ids and versions, past GORM's models: there may be ten thousand.
func (s *site) scan(tx *gorm.DB, marks *[]mark) error {
	rows, err := tx.Rows()
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		var version int64
		if err := rows.Scan(&id, &version); err != nil {
			return err
		}
		*marks = append(*marks, markOf(id, version))
	}
	return errors.Join(rows.Err(), rows.Close())
}

// walk reads all that a filter finds, some rows at a time: table by table and partition by
// partition, each in the order of its index, and of each task only what a change needs.
func (s *site) walk(ctx context.Context, f filter, at time.Time, size int) iter.Seq2[[]row, error] {
	return func(yield func([]row, error) bool) {
		list, err := s.sources(ctx, f, at)
		if err != nil {
			yield(nil, err)
			return
		}
		for _, src := range list {
			src.columns = "id, version, run_at, finished_at"
			if _, ok := src.model.(*outbox.TaskModel); ok {
				src.columns = "id, version, run_at, state"
			}
			var c *cursor
			for {
				rows, err := s.part(ctx, src, f, c, size)
				if !yield(rows, err) || err != nil {
					return
				}
				if len(rows) < size {
					break
				}
				last := rows[len(rows)-1]
				c = &cursor{at: last.place(list), id: last.ID}
			}
		}
	}
}
