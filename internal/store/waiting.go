package store

import (
	"context"
	"encoding/json"
	"fmt"
)

// This file counts what waits, at a cost that does not grow with it: whoever scrapes walhook
// asks every few seconds, and millions may wait for days.

// A WaitingOverview counts the unfinished deliveries. Up to countedExactly in total that is
// exact. Beyond, it is an estimate from PostgreSQL's statistics.
type WaitingOverview struct{ Pending, Retrying int64 }

// Estimated reports whether it is an estimate.
func (w WaitingOverview) Estimated() bool { return w.Pending+w.Retrying > countedExactly }

// countedExactly bounds the rows that are counted one by one: about 4 ms of PostgreSQL.
const countedExactly = 2000

const (
	selectWaitingOverview = `
SELECT count(*) FILTER (WHERE d.status = 'pending'), count(*) FILTER (WHERE d.status = 'retrying')
FROM (SELECT status FROM webhook_deliveries WHERE status IN ('pending', 'retrying') ORDER BY next_attempt_at LIMIT $1::int) AS d`

	// Rows per page when VACUUM or ANALYZE last looked, and the pages of now, the first one
	// left out: it is no row's. Of an index that nobody has looked at yet, a page that was
	// filled at random holds some 250.
	selectWaitingEstimate = `
SELECT coalesce(sum(CASE WHEN c.relpages > 1 THEN greatest(c.reltuples, 0::float4) / (c.relpages - 1) ELSE 250 END
                    * greatest(pg_relation_size(c.oid) / current_setting('block_size')::bigint - 1, 0)), 0)::bigint
FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid WHERE i.inhparent = 'webhook_deliveries_due_idx'::regclass::oid`

	explainPending = `EXPLAIN (FORMAT JSON) SELECT FROM webhook_deliveries WHERE status = 'pending'`
)

func (s *Store) waitingOverview(ctx context.Context) (counted WaitingOverview, err error) {
	err = s.overview(ctx, prepareRead, selectWaitingOverview, []any{countedExactly + 1}, &counted.Pending, &counted.Retrying)
	if err != nil || counted.Pending+counted.Retrying <= countedExactly {
		return counted, err
	}
	var all int64
	if err := s.overview(ctx, prepareRead, selectWaitingEstimate, nil, &all); err != nil {
		return counted, err
	}
	var plan []byte
	if err := s.overview(ctx, prepareRead, explainPending, nil, &plan); err != nil {
		return counted, err
	}
	pending, err := plannedRows(plan)
	if err != nil {
		return counted, err
	}
	return counted.atLeast(all, pending), nil
}

// atLeast returns estimates of all and of the pending ones, made consistent with what was
// counted.
func (w WaitingOverview) atLeast(all, pending int64) WaitingOverview {
	all = max(all, w.Pending+w.Retrying)
	w.Pending = min(max(pending, w.Pending), all-w.Retrying)
	w.Retrying = all - w.Pending
	return w
}

// plannedRows returns how many rows the planner expects.
func plannedRows(plan []byte) (int64, error) {
	var explained []struct {
		Plan struct {
			Rows float64 `json:"Plan Rows"`
		}
	}
	if err := json.Unmarshal(plan, &explained); err != nil {
		return 0, fmt.Errorf("read the planner's estimate: %w", err)
	}
	if len(explained) != 1 {
		return 0, fmt.Errorf("read the planner's estimate: %d plans", len(explained))
	}
	return int64(explained[0].Plan.Rows), nil
}
