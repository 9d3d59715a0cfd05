package main

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/gorm-outbox/outbox"
)

const pieces = 10 // of the tasks, whose rates are told apart

// snapshot works off tasks while a transaction keeps the server from removing dead rows.
func (b *bench) snapshot(ctx context.Context) (*result, error) {
	n := b.tasks(200_000)
	enter := []entrant{
		b.enterOurs("outbox", n, outbox.Options{Concurrency: 1000}, conns),
		b.enterRiverPgx("River, its own driver", n, riverFast),
	}
	var list []measure
	var series []line
	for i, e := range enter {
		name := fmt.Sprintf("snapshot%d", i)
		c, err := e.open(ctx, name)
		if err != nil {
			return nil, err
		}
		defer c.close()
		for _, held := range []bool{false, true} {
			name := e.name
			if held {
				name += ", with a snapshot"
			}
			s := len(series)
			series = append(series, line{Name: name, Ours: e.ours, Points: make([]cell, pieces)})
			rounds := 0
			if !e.ours {
				rounds = 1 // it takes long
			}
			list = append(list, measure{name: name, ours: e.ours, rounds: rounds, run: func(ctx context.Context) ([]float64, error) {
				p := &piecewise{contestant: c, held: held}
				rate, err := workOff(ctx, p, n, 2*time.Minute)
				if err != nil {
					return nil, err
				}
				for k, r := range p.rates() {
					series[s].Points[k] = append(series[s].Points[k], r)
				}
				last := len(p.rates()) - 1
				return []float64{rate, p.rates()[1], p.rates()[last-1]}, nil
			}})
		}
	}
	rows, err := b.interleave(ctx, b.rounds, list)
	if err != nil {
		return nil, err
	}
	slope := rows[1].Cells[2].over(rows[1].Cells[1])
	return &result{
		Notes: []string{fmt.Sprintf("%s tasks, 1,000 slots (River 2,000 workers, one round), with and without a REPEATABLE READ transaction that began after they had been created and has read.",
			format(float64(n)))},
		Columns: []column{{"rate", "tasks/s"}, {"second tenth", "tasks/s"}, {"last but one tenth", "tasks/s"}}, Rows: rows, Series: series,
		Goals: []goal{
			b.ratio("with a snapshot, of the rate without", rows, 1, 0, .8),
			{Text: "no slope: the last but one tenth's rate of the second's", Samples: slope, Unit: "×", Limit: .9, Quick: b.quick},
		},
	}, nil
}

// piecewise holds a snapshot while its contestant works, and notes when each piece has run.
type piecewise struct {
	contestant
	held  bool
	n     int
	marks []time.Time
}

func (p *piecewise) load(ctx context.Context, n int) error {
	p.n = n
	return p.contestant.load(ctx, n)
}

func (p *piecewise) start(ctx context.Context, ran func(int)) (stop func() error, err error) {
	release := func() error { return nil }
	if p.held {
		if release, err = hold(ctx, p.contestant); err != nil {
			return nil, err
		}
	}
	p.marks = make([]time.Time, pieces+1)
	p.marks[0] = time.Now()
	t := newTally(p.n)
	end, err := p.contestant.start(ctx, func(i int) {
		if k := int(t.total.Add(1)); k%(p.n/pieces) == 0 && k/(p.n/pieces) <= pieces {
			p.marks[k/(p.n/pieces)] = time.Now()
		}
		ran(i)
	})
	if err != nil {
		return nil, err
	}
	return func() error {
		if err := end(); err != nil {
			return err
		}
		return release()
	}, nil
}

func (p *piecewise) rates() []float64 {
	rates := make([]float64, pieces)
	for k := range rates {
		rates[k] = float64(p.n/pieces) / p.marks[k+1].Sub(p.marks[k]).Seconds()
	}
	return rates
}

// pooled has a database to look into.
type pooled interface{ sqlPool() *sql.DB }

// hold opens a snapshot in the contestant's database.
func hold(ctx context.Context, c contestant) (release func() error, err error) {
	tx, err := c.(pooled).sqlPool().BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return nil, err
	}
	var n int
	if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM pg_class").Scan(&n); err != nil {
		return nil, err
	}
	return tx.Rollback, nil
}
