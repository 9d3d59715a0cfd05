package outbox

import (
	"context"
	"reflect"
	"testing"
	"time"
)

// What one task costs this process, without a database: compare with benchstat. What the statements
// cost is for make bench.

type speedArgs struct {
	OrderID  int64     `json:"orderId"`
	Reason   string    `json:"reason"`
	Deadline time.Time `json:"deadline"`
	Lines    []string  `json:"lines,omitempty"`
}

var speedExample = speedArgs{
	OrderID: 9007199254740993, Reason: "not paid in time", Deadline: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC),
	Lines: []string{"4711", "4712", "4713"},
}

// BenchmarkEncode encodes and checks the arguments of one creation.
func BenchmarkEncode(b *testing.B) {
	for name, args := range map[string]any{
		"struct": speedExample,
		"map":    Args{"orderId": speedExample.OrderID, "reason": speedExample.Reason, "lines": speedExample.Lines},
		"none":   nil,
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := encodeArgs(nil, args, 64<<10); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCheck finds out whether arguments of one creation, encoded already, can be bound.
func BenchmarkCheck(b *testing.B) {
	raw, err := encodeArgs(nil, speedExample, 64<<10)
	if err != nil {
		b.Fatal(err)
	}
	h, err := newHandler("speed.check", reflect.ValueOf(func(context.Context, speedArgs) error { return nil }))
	if err != nil {
		b.Fatal(err)
	}
	for name, args := range map[string]any{"own": speedExample, "map": Args{}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := h.param.CheckFits(args, raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkBind decodes stored arguments for one run.
func BenchmarkBind(b *testing.B) {
	raw, err := encodeArgs(nil, speedExample, 64<<10)
	if err != nil {
		b.Fatal(err)
	}
	for name, fn := range map[string]any{
		"struct": func(context.Context, speedArgs) error { return nil },
		"map":    func(context.Context, Args) error { return nil },
	} {
		b.Run(name, func(b *testing.B) {
			h, err := newHandler("speed.bind", reflect.ValueOf(fn))
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := h.param.Bind(raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
