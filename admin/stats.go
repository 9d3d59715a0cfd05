package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/gorm-outbox/outbox"
)

// figures are the numbers of the overview, at one moment.
type figures struct {
	At             time.Time      `json:"at"`
	Counts         map[string]int `json:"counts"` // by state; a number above 10,000 means "more than 10,000"
	FailedDay      int            `json:"failed_24h"`
	DoneDay        int            `json:"done_24h"`
	OldestDue      *time.Time     `json:"oldest_due,omitempty"`      // start time of the task that has waited longest
	NextScheduled  *time.Time     `json:"next_scheduled,omitempty"`  // start time of the next scheduled task
	LongestRunning *time.Time     `json:"longest_running,omitempty"` // start of the run that has taken longest
	P50            *time.Duration `json:"p50_ns,omitempty"`          // of the last successes
	P95            *time.Duration `json:"p95_ns,omitempty"`
	Buckets        []bucket       `json:"throughput"`
	Trouble        []trouble      `json:"trouble"`
	Parked         []countOf      `json:"parked,omitempty"`
	Functions      []function     `json:"-"`
	Processes      []process      `json:"-"`
}

type bucket struct {
	From   time.Time `json:"from"`
	OK     int       `json:"ok"`
	Failed int       `json:"failed"`
}

// trouble is a kind of failure: failed tasks of one function whose errors have the same first line.
type trouble struct {
	Func   string    `json:"func"`
	Error  string    `json:"error"`
	Reason string    `json:"reason"`
	Count  int       `json:"count"`
	Last   time.Time `json:"last"`
}

type countOf struct {
	Func  string `json:"func"`
	Count int    `json:"count"`
}

type process struct {
	ID        string    `json:"id"`
	Host      string    `json:"host"`
	PID       int64     `json:"pid"`
	Slots     int       `json:"slots"`
	Running   int       `json:"running"`
	Queues    []string  `json:"queues"` // empty means all
	Functions []string  `json:"functions"`
	StartedAt time.Time `json:"started_at"`
	BeatAt    time.Time `json:"beat_at"`
	Silent    bool      `json:"silent"` // no heartbeat for longer than the default limit
}

// ranges of the chart: the length, and the number of bars.
var ranges = map[string]struct {
	length time.Duration
	bars   int
}{"1h": {time.Hour, 30}, "24h": {24 * time.Hour, 24}, "7d": {7 * 24 * time.Hour, 28}}

// silentAfter is the default HeartbeatLimit. The limits of other processes are not known.
const silentAfter = 30 * time.Second

// sample is the number of tasks that ended last from which durations, functions and troubles are
// computed.
const sample = 1000

func (s *site) figures(ctx context.Context, span string) (f figures, err error) {
	at, err := s.now(ctx)
	if err != nil {
		return f, err
	}
	f = figures{At: at, Counts: map[string]int{}, Trouble: []trouble{}}
	for _, state := range states[1:] {
		if state == handled {
			continue
		}
		if f.Counts[state], err = s.count(ctx, filter{State: state}, at); err != nil {
			return f, err
		}
	}
	day := at.Add(-24 * time.Hour)
	if f.FailedDay, err = s.count(ctx, filter{State: failed, From: day}, at); err != nil {
		return f, err
	}
	if f.DoneDay, err = s.count(ctx, filter{State: done, From: day}, at); err != nil {
		return f, err
	}
	for state, dst := range map[string]**time.Time{pending: &f.OldestDue, scheduled: &f.NextScheduled} {
		p, err := s.fetch(ctx, filter{State: state, Limit: 1}, at)
		if err != nil {
			return f, err
		}
		if len(p.rows) > 0 {
			*dst = utc(p.rows[0].RunAt)
		}
	}
	var busy []row
	if err = s.read(ctx).Model(&outbox.TaskModel{}).Select("id, func, started_at").Where("state = 'running' AND process_id > ''").
		Order("started_at").Limit(1).Find(&busy).Error; err != nil {
		return f, err
	}
	if len(busy) > 0 && busy[0].StartedAt != nil {
		f.LongestRunning = utc(*busy[0].StartedAt)
	}
	if f.Buckets, err = s.throughput(ctx, span, at); err != nil {
		return f, err
	}
	if f.Trouble, err = s.trouble(ctx, day); err != nil {
		return f, err
	}
	if f.Processes, err = s.listProcesses(ctx, at); err != nil {
		return f, err
	}
	if f.Functions, err = s.listFunctions(ctx, f.Processes); err != nil {
		return f, err
	}
	var durations []time.Duration
	for _, fn := range f.Functions {
		durations = append(durations, fn.durations...)
		if fn.Parked > 0 {
			f.Parked = append(f.Parked, countOf{fn.Path, fn.Parked})
		}
	}
	f.P50, f.P95 = quantiles(durations)
	return f, nil
}

func utc(t time.Time) *time.Time { t = t.UTC(); return &t }

// settled is the time after the end of a bar when all tasks that ended in the bar have been
// committed. The bar is then not counted again.
const settled = time.Minute

// throughput counts the tasks that ended. Bars that were settled at the previous count are reused.
func (s *site) throughput(ctx context.Context, span string, at time.Time) ([]bucket, error) {
	last, _ := remembered[figures](s, "overview "+span)
	counted := map[time.Time]bucket{}
	for _, b := range last.Buckets {
		counted[b.From] = b
	}
	r := ranges[span]
	step := r.length / time.Duration(r.bars)
	end := at.Truncate(step).Add(step)
	list := make([]bucket, r.bars)
	for i := range list {
		from := end.Add(-step * time.Duration(r.bars-i))
		if b, ok := counted[from]; ok && last.At.Sub(from.Add(step)) > settled {
			list[i] = b
			continue
		}
		b := bucket{From: from}
		for status, n := range map[string]*int{"status = 'success'": &b.OK, "status = 'error'": &b.Failed} {
			var count int64
			some := s.read(ctx).Model(&outbox.HistoryModel{}).Select("1 AS one").Where(status).
				Where("finished_at >= "+s.d.Instant(), s.d.Time(from)).Where("finished_at < "+s.d.Instant(), s.d.Time(from.Add(step))).
				Limit(maxCount + 1)
			if err := s.read(ctx).Table("(?) AS part", some).Count(&count).Error; err != nil {
				return nil, err
			}
			*n = int(count)
		}
		list[i] = b
	}
	return list, nil
}

// trouble groups the last failures that have not been re-run.
func (s *site) trouble(ctx context.Context, since time.Time) ([]trouble, error) {
	f := filter{State: failed, From: since}
	list, err := s.sources(ctx, f, since)
	if err != nil {
		return nil, err
	}
	var last []row
	err = s.query(ctx, list[0], f).Select("func, reason, substr(error, 1, 400) AS error, finished_at").Order("finished_at DESC").Limit(sample).Find(&last).Error
	if err != nil {
		return nil, err
	}
	type kind struct{ path, reason, text string }
	found := map[kind]*trouble{}
	for _, r := range last {
		text := firstLine(r.Error)
		k := kind{r.Func, string(r.Reason), text}
		if found[k] == nil {
			found[k] = &trouble{Func: r.Func, Error: text, Reason: string(r.Reason), Last: r.FinishedAt.UTC()}
		}
		found[k].Count++
	}
	kinds := make([]trouble, 0, len(found))
	for _, t := range found {
		kinds = append(kinds, *t)
	}
	slices.SortFunc(kinds, func(a, b trouble) int {
		return cmp.Or(b.Count-a.Count, b.Last.Compare(a.Last), strings.Compare(a.Func+a.Error, b.Func+b.Error))
	})
	return kinds[:min(len(kinds), 8)], nil
}

func firstLine(text *string) string {
	if text == nil {
		return ""
	}
	line, _, _ := strings.Cut(strings.TrimSpace(*text), "\n")
	return shorten(line, 200)
}

func (s *site) listProcesses(ctx context.Context, at time.Time) ([]process, error) {
	var models []outbox.ProcessModel
	if err := s.read(ctx).Order("host, started_at, id").Limit(500).Find(&models).Error; err != nil {
		return nil, err
	}
	var busy []struct {
		ProcessID string
		N         int
	}
	err := s.read(ctx).Model(&outbox.TaskModel{}).Select("process_id, count(*) AS n").
		Where("state = 'running' AND process_id > ''").Group("process_id").Find(&busy).Error
	if err != nil {
		return nil, err
	}
	n := map[string]int{}
	for _, b := range busy {
		n[b.ProcessID] = b.N
	}
	list := make([]process, len(models))
	for i, m := range models {
		list[i] = process{ID: m.ID, Host: m.Host, PID: m.PID, Slots: m.Slots, Running: n[m.ID], Queues: texts(m.Queues),
			Functions: texts(m.Functions), StartedAt: m.StartedAt.UTC(), BeatAt: m.BeatAt.UTC(), Silent: at.Sub(m.BeatAt) > silentAfter}
	}
	return list, nil
}

func texts(j outbox.JSON) []string {
	list := []string{}
	if len(j) > 0 && json.Unmarshal(j, &list) != nil || list == nil { // null
		return []string{}
	}
	return list
}
