package store_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
)

// An explained is the plan of a statement as the store really ran it: in its
// transaction, with its settings and its parameters. auto_explain reports it.
type explained struct {
	Query string   `json:"Query Text"`
	Plan  planNode `json:"Plan"`
	Took  time.Duration
	text  string
}

type planNode struct {
	Type     string     `json:"Node Type"`
	Relation string     `json:"Relation Name"`
	Index    string     `json:"Index Name"`
	Rows     float64    `json:"Actual Rows"`
	Loops    float64    `json:"Actual Loops"`
	Removed  float64    `json:"Rows Removed by Filter"`
	Unjoined float64    `json:"Rows Removed by Join Filter"`
	Hit      int        `json:"Shared Hit Blocks"`
	Read     int        `json:"Shared Read Blocks"`
	WALBytes int        `json:"WAL Bytes"`
	Plans    []planNode `json:"Plans"`
}

func (n *planNode) walk(visit func(*planNode)) {
	visit(n)
	for i := range n.Plans {
		n.Plans[i].walk(visit)
	}
}

// plans collects what auto_explain says on a pool's connections.
type plans struct {
	mu  sync.Mutex
	all []explained
	bad []error
}

var duration = regexp.MustCompile(`^duration: ([0-9.]+) ms +plan:`)

func (p *plans) notice(_ *pgconn.PgConn, n *pgconn.Notice) {
	match := duration.FindStringSubmatch(n.Message)
	if match == nil {
		return
	}
	e := explained{text: n.Message}
	err := json.Unmarshal([]byte(n.Message[len(match[0]):]), &e)
	e.Took, _ = time.ParseDuration(match[1] + "ms")
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.bad = append(p.bad, err)
	}
	p.all = append(p.all, e)
}

// take returns the plans of the statements that hold a text, since the last time.
func (p *plans) take(t testing.TB, holding string) (found []explained) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, err := range p.bad {
		t.Error(err)
	}
	for _, e := range p.all {
		if strings.Contains(e.Query, holding) {
			found = append(found, e)
		}
	}
	p.all = nil
	return found
}

// explaining returns a store whose plans can be looked at. mode is plan_cache_mode.
func explaining(t testing.TB, db *pgtest.DB, mode string) (*store.Store, *plans) {
	t.Helper()
	p := &plans{}
	pool := newPool(t, db, func(c *pgxpool.Config) {
		c.MaxConns = 1
		c.ConnConfig.OnNotice = p.notice
		maps.Copy(c.ConnConfig.RuntimeParams, map[string]string{
			"session_preload_libraries": "auto_explain", "auto_explain.log_min_duration": "0", "auto_explain.log_analyze": "on", "auto_explain.log_buffers": "on", "auto_explain.log_wal": "on",
			"auto_explain.log_timing": "off", "auto_explain.log_format": "json", "auto_explain.log_level": "notice", "plan_cache_mode": mode,
		})
	})
	if err := pool.Ping(t.Context()); err != nil {
		if strings.Contains(err.Error(), "auto_explain") {
			t.Skip("this server comes without auto_explain: ", err)
		}
		t.Fatal(err)
	}
	return store.New(pool, db.Slot, disableAfter), p
}

// problem says why a plan will not do, or nothing.
func (e *explained) problem(blocks int) string {
	var problems []string
	e.Plan.walk(func(n *planNode) {
		of := strings.HasPrefix(n.Relation, "webhook_deliveries") || strings.HasPrefix(n.Relation, "webhook_outbox") || n.Relation == "webhook_endpoints"
		switch {
		case n.Type == "Seq Scan" && of && n.Loops > 0:
			problems = append(problems, "a sequential scan on "+n.Relation)
		case n.Relation != "" && n.Removed*n.Loops > 2*n.Rows*n.Loops+1000: // elsewhere it is what was asked
			problems = append(problems, fmt.Sprintf("%.0f rows of %s are read for %.0f", n.Removed*n.Loops, n.Relation, n.Rows*n.Loops))
		case n.Unjoined*n.Loops > 2*n.Rows*n.Loops+1000:
			problems = append(problems, fmt.Sprintf("%.0f pairs of rows are compared for %.0f", n.Unjoined*n.Loops, n.Rows*n.Loops))
		}
	})
	if n := e.Plan.Hit + e.Plan.Read; n > blocks {
		problems = append(problems, fmt.Sprintf("it touches %d blocks, more than %d", n, blocks))
	}
	return strings.Join(slices.Compact(problems), "; ")
}
