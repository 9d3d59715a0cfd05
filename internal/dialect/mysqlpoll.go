package dialect

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"
)

// A poll of MySQL. Neither server is certain to skip through an index: in a grouped or a recursive
// query, either may read every waiting task. Both do look up a given value, and both read the
// ranges between given values. So a poll of many queues needs two statements: one reads the first
// tasks of the queues that earlier polls have found, the other looks for a queue between them. Few
// queues, and new ones, are found by walking from one queue to the next.

// fewQueues is the largest number of known queues that a poll walks through.
const fewQueues = 16

// queueMemory is how long a poll still asks for a queue that has no task. So the queue's next task
// does not make the poll discover the queue again.
const queueMemory = time.Minute

// One part of a statement excludes some of the queues, because the servers plan a list in time
// quadratic in its length. A statement has some of the parts, because it can have only 65,535
// parameters.
const (
	queuesInPart     = 200
	partsInStatement = 100
)

func (m *mysql) Poll(ctx context.Context, c Conn) (partitions []PartitionState, err error) {
	m.polling.Lock()
	defer m.polling.Unlock()
	if known := slices.Sorted(maps.Keys(m.queues)); len(known) <= fewQueues {
		partitions, err = m.walk(ctx, c)
	} else if known, err = m.discover(ctx, c, known); err == nil {
		// The next start time of a partition that has due tasks is left to the next poll.
		partitions, err = partitionStates(c.QueryContext(ctx, m.at(m.firsts), encode(known)))
	}
	if err != nil {
		return nil, err
	}
	now := time.Now()
	if m.queues == nil {
		m.queues = map[string]time.Time{}
	}
	for _, l := range partitions {
		m.queues[l.Queue] = now
	}
	maps.DeleteFunc(m.queues, func(_ string, seen time.Time) bool { return now.Sub(seen) > queueMemory })
	return partitions, nil
}

// walk goes from one partition to the next with one statement each. The statement reads the next
// start time of a partition that has due tasks, as a row of priority 0, and the partition that
// follows.
func (m *mysql) walk(ctx context.Context, c Conn) (partitions []PartitionState, err error) {
	found, err := partitionStates(c.QueryContext(ctx, m.at(m.probe)))
	for err == nil && len(found) > 0 {
		l := found[0]
		partitions = append(partitions, l)
		found, err = partitionStates(c.QueryContext(ctx, m.at(m.probeNext), l.Queue, l.Priority, l.Queue, l.Priority, l.Queue))
		if len(found) > 0 && found[0].Priority == 0 { // the same partition
			partitions[len(partitions)-1].Next = found[0].Next
			found = found[1:]
		}
	}
	return partitions, err
}

// discover adds the queues that are not known yet to the known ones, in order.
func (m *mysql) discover(ctx context.Context, c Conn, known []string) ([]string, error) {
	for {
		found, err := m.between(ctx, c, known)
		if err != nil || len(found) == 0 {
			return known, err
		}
		for _, queue := range found {
			at, there := slices.BinarySearch(known, queue)
			for !there {
				known = slices.Insert(known, at, queue)
				next, err := texts(c.QueryContext(ctx, m.queueBehind, queue))
				if err != nil {
					return nil, err
				}
				if len(next) == 0 {
					break
				}
				queue = next[0]
				at, there = slices.BinarySearch(known, queue)
			}
		}
	}
}

// between returns some of the queues that are not known. It returns none only if all are known.
func (m *mysql) between(ctx context.Context, c Conn, known []string) (found []string, err error) {
	parts := slices.Collect(slices.Chunk(known, queuesInPart))
	for first := 0; first < len(parts); first += partsInStatement {
		var query []string
		var params []any
		for i := first; i < min(first+partsInStatement, len(parts)); i++ {
			names, bounds := parts[i], ""
			if i > 0 {
				bounds, params = " AND queue > ?", append(params, parts[i-1][queuesInPart-1])
			}
			if i < len(parts)-1 {
				bounds, params = bounds+" AND queue < ?", append(params, names[queuesInPart-1])
			}
			// Repeating the last name fills the part, so that statements have few different texts.
			for k := range queuesInPart {
				params = append(params, names[min(k, len(names)-1)])
			}
			query = append(query, strings.Replace(m.queueBetween, "<bounds>", bounds, 1))
		}
		some, err := texts(c.QueryContext(ctx, strings.Join(query, "\nUNION ALL\n"), params...))
		if err != nil {
			return nil, err
		}
		found = append(found, some...)
	}
	return found, nil
}
