package admin

import (
	"context"
	"maps"
	"slices"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
)

// function is what the pages show about one function.
type function struct {
	Path      string         `json:"path"`
	Here      bool           `json:"registered_here"`
	Processes int            `json:"processes"` // live processes that run it
	Waiting   int            `json:"waiting"`
	Running   int            `json:"running"`
	Parked    int            `json:"parked"`
	OK        int            `json:"ok"`
	Failed    int            `json:"failed"`
	P50       *time.Duration `json:"p50_ns,omitempty"`
	P95       *time.Duration `json:"p95_ns,omitempty"`

	// Trend has the medians of eight equal parts of the last successes, the oldest first. Pace is
	// its summary in a word.
	Trend []time.Duration `json:"trend_ns,omitempty"`
	Pace  string          `json:"pace,omitempty"` // slower, faster or steady

	durations []time.Duration // the newest first
}

// listFunctions lists every function that is registered here, or that a process or a task names.
// Counts of waiting tasks come from a sample of 10,000, durations and failures from the tasks that
// ended last.
func (s *site) listFunctions(ctx context.Context, processes []process) ([]function, error) {
	found := map[string]*function{}
	get := func(path string) *function {
		if found[path] == nil {
			found[path] = &function{Path: path}
		}
		return found[path]
	}
	for _, path := range s.inside().Functions {
		get(path).Here = true
	}
	for _, p := range processes {
		if !p.Silent {
			for _, path := range p.Functions {
				get(path).Processes++
			}
		}
	}
	for state, n := range map[outbox.State]func(*function) *int{outbox.StatePending: func(f *function) *int { return &f.Waiting },
		outbox.StateRunning: func(f *function) *int { return &f.Running }, outbox.StateParked: func(f *function) *int { return &f.Parked }} {
		counts, err := s.unfinished(ctx, state)
		if err != nil {
			return nil, err
		}
		for path, count := range counts {
			*n(get(path)) = count
		}
	}
	for _, status := range []string{"status = 'success'", "status = 'error' AND rerun_id IS NULL"} {
		var last []row
		if err := s.read(ctx).Model(&outbox.HistoryModel{}).Select("func, status, started_at, finished_at").Where(status).
			Order("finished_at DESC").Limit(sample).Find(&last).Error; err != nil {
			return nil, err
		}
		for _, r := range last {
			f := get(r.Func)
			if r.Status == outbox.StatusError {
				f.Failed++
				continue
			}
			f.OK++
			if r.StartedAt != nil {
				f.durations = append(f.durations, r.FinishedAt.Sub(*r.StartedAt))
			}
		}
	}
	list := make([]function, 0, len(found))
	for _, path := range slices.Sorted(maps.Keys(found)) {
		f := found[path]
		f.P50, f.P95 = quantiles(f.durations)
		f.Trend, f.Pace = trend(f.durations)
		list = append(list, *f)
	}
	return list, nil
}

// unfinished counts the tasks of a state by function. Of the waiting tasks it counts the first ones
// of each partition, maxCount in all.
func (s *site) unfinished(ctx context.Context, state outbox.State) (map[string]int, error) {
	switch state {
	case outbox.StateParked:
		return s.parkedByFunc(ctx)
	case outbox.StateRunning:
		counts, err := s.byFunc(ctx, s.read(ctx).Where("state = 'running' AND process_id > ''").Limit(maxCount))
		return sum(nil, counts), err
	}
	partitions, err := s.d.Poll(ctx, s.db.Statement.ConnPool)
	if err != nil {
		return nil, err
	}
	total := map[string]int{}
	for _, l := range partitions {
		counts, err := s.byFunc(ctx, s.read(ctx).Where("state = 'pending' AND queue = ? AND priority = ?", l.Queue, l.Priority).
			Order("run_at").Limit(max(1, maxCount/len(partitions))))
		if err != nil {
			return nil, err
		}
		total = sum(total, counts)
	}
	return total, nil
}

// parkedByFunc reads along the index of parked tasks. If a function has more than maxCount tasks,
// it reads no more of them and goes on with the next function, so that one function hides no other.
func (s *site) parkedByFunc(ctx context.Context) (map[string]int, error) {
	total := map[string]int{}
	after := ""
	for range 20 {
		counts, err := s.byFunc(ctx, s.read(ctx).Where("state = 'parked' AND func > ?", after).Order("func").Limit(maxCount+1))
		if err != nil {
			return nil, err
		}
		read := 0
		for _, c := range counts {
			read += c.Count
		}
		if read > maxCount && len(counts) > 1 {
			counts = counts[:len(counts)-1] // this function may have more
		}
		total = sum(total, counts)
		if read <= maxCount {
			break
		}
		after = counts[len(counts)-1].Func
	}
	return total, nil
}

// byFunc counts the given tasks by function, in the database's order of names.
func (s *site) byFunc(ctx context.Context, some *gorm.DB) (counts []countOf, err error) {
	return counts, s.read(ctx).Table("(?) AS part", some.Model(&outbox.TaskModel{}).Select("func")).
		Select("func, count(*) AS count").Group("func").Order("func").Find(&counts).Error
}

func sum(total map[string]int, counts []countOf) map[string]int {
	if total == nil {
		total = map[string]int{}
	}
	for _, c := range counts {
		total[c.Func] += c.Count
	}
	return total
}

// parts is the number of parts of a trend. With fewer than two runs a part, a trend would show
// noise.
const parts = 8

func trend(newest []time.Duration) (medians []time.Duration, pace string) {
	n := len(newest) / parts
	if n < 2 {
		return nil, ""
	}
	for i := parts - 1; i >= 0; i-- {
		p50, _ := quantiles(newest[i*n : (i+1)*n])
		medians = append(medians, *p50)
	}
	now, _ := quantiles(newest[:n*parts/2])
	before, _ := quantiles(newest[n*parts/2 : n*parts])
	switch {
	case *now >= *before*3/2+time.Millisecond:
		return medians, "slower"
	case *before >= *now*3/2+time.Millisecond:
		return medians, "faster"
	}
	return medians, "steady"
}

// quantiles are the 50th and the 95th percentile.
func quantiles(list []time.Duration) (p50, p95 *time.Duration) {
	if len(list) == 0 {
		return nil, nil
	}
	list = slices.Sorted(slices.Values(list))
	a, b := list[(len(list)-1)*50/100], list[(len(list)-1)*95/100]
	return &a, &b
}
