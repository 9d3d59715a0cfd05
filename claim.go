package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// claim takes due tasks for a process, at most limit in all by the claims of a plan one after the other, in the caller's turn.
// It returns what each has found. A row that cannot be read comes back as a task with little more than its fence, and an
// error that says why.
func (s *store) claim(ctx context.Context, plan []dialect.ClaimParams, limit int) (lists [][]claimed, err error) {
	defer caught(&err)
	if s.d.OneStatement() || len(plan) == 1 && len(plan[0].Lanes) == 1 {
		return s.claimIn(ctx, s.work(nil), plan, limit)
	}
	err = s.inTx(ctx, func(tx *sql.Tx) (err error) {
		lists, err = s.claimIn(ctx, s.work(tx), plan, limit)
		return err
	})
	if err != nil {
		return nil, err // what was read of a claim that failed is not ours
	}
	return lists, nil
}

func (s *store) claimIn(ctx context.Context, c dialect.Conn, plan []dialect.ClaimParams, limit int) ([][]claimed, error) {
	lists := make([][]claimed, len(plan))
	for i, p := range plan {
		if p.Limit = min(p.Limit, limit); p.Limit == 0 {
			continue
		}
		var scan claimScan
		err := s.d.Claim(ctx, c, p, func(r dialect.Row) error {
			lists[i] = append(lists[i], scan.claimed(r))
			return nil
		})
		if err != nil {
			return nil, err
		}
		limit -= len(lists[i])
	}
	return lists, nil
}

type claimed struct {
	task *TaskModel
	err  error
}

// claimScan reads the rows of one statement. The zero value is ready.
type claimScan struct {
	task TaskModel
	dest []any // its fields
}

func (s *claimScan) claimed(r dialect.Row) claimed {
	if s.dest == nil {
		s.dest = taskDest(&s.task)
	}
	s.task = TaskModel{}
	err := r.Scan(s.dest...)
	if err == nil {
		t := s.task
		return claimed{task: &t}
	}
	// Somebody wrote into the row what its types do not hold, as SQLite allows. Fetch what can be fetched.
	loose := new(TaskModel)
	var queue, path sql.NullString
	var priority any
	dest := make([]any, len(dialect.Columns))
	for i, column := range dialect.Columns {
		switch column {
		case "id":
			dest[i] = &loose.ID
		case "version":
			dest[i] = &loose.Version
		case "func":
			dest[i] = &path
		case "queue":
			dest[i] = &queue
		case "priority":
			dest[i] = &priority
		case "process_id":
			dest[i] = &loose.ProcessID
		default:
			dest[i] = new(any)
		}
	}
	if again := r.Scan(dest...); again != nil {
		err = errors.Join(err, again)
	}
	loose.MaxAttempts, loose.Attempt = 1, 1
	loose.Func, loose.Queue = path.String, queue.String
	loose.Priority, _ = strconv.Atoi(fmt.Sprint(priority)) // else the partition looks emptied, until the next poll
	return claimed{task: loose, err: fmt.Errorf("the row cannot be read: %w", err)}
}
