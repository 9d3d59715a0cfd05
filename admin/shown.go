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

// shown is the set of tasks that the sender has seen, each at its version. A change of "all that
// match" may change only these tasks. A form has to carry the set, so the set has only some bytes
// of a hash of each task: among a million other tasks, the probability that one passes is one in a
// hundred.
type shown map[mark]bool

type mark [5]byte

func markOf(id string, version int64) mark {
	sum := sha256.Sum256([]byte(id + "." + strconv.FormatInt(version, 10)))
	return mark(sum[:])
}

// seal is a set as forms and JSON carry it.
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

// parseShown reads a set. An empty text is no set.
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

// seen returns the set of the tasks that a filter finds, at most maxCount and in the order of walk.
// It also returns their number, up to maxCount+1.
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

// scan reads ids and versions without GORM's models, because there may be ten thousand rows.
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

// walk reads all tasks that a filter finds, some rows at a time: table by table and partition by
// partition, each in the order of its index. Of each task it reads only the columns that a change
// needs.
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
