//go:build linux

package main

import "context"

// A workload is a backlog and who receives it.
type workload struct {
	name      string
	endpoints int
	size      int // bytes of a payload; 0: payloadBytes
	share     int // it has this part of -n, because it is slow; 0: all
	secure    bool
	path      string
	env       []string // of walhook
	aim       string   // of walhook / bare client
}

// plain is what drain measures: one endpoint, 1 KiB, no TLS.
var plain = workload{name: "one endpoint, 1 KiB", endpoints: 1, path: pathCount, aim: ">= 0.85"}

// kinds are compared with plain.
var kinds = []workload{
	plain,
	{name: "10 endpoints", endpoints: 10, path: pathCount, aim: ">= 0.80"},
	{name: "1,000 endpoints", endpoints: 1000, path: pathCount, aim: ">= 0.80"},
	{name: "TLS", endpoints: 1, path: pathCount, secure: true, aim: ">= 0.85"},
	{name: "64 KiB", endpoints: 1, size: 64 << 10, share: 10, path: pathCount},
	{name: "receiver takes 10 ms", endpoints: 1, share: 4, path: pathSlow},
	{name: "WALHOOK_PARK_AFTER=0", endpoints: 1, path: pathCount, env: []string{"WALHOOK_PARK_AFTER=0"}},
}

func (w workload) url(r *receiver) string {
	if w.secure {
		return r.secureURL(w.path)
	}
	return r.url(w.path)
}

// environment has walhook trust the receiver's certificate.
func (w workload) environment(r *receiver) []string {
	if w.secure {
		return append(w.env, "SSL_CERT_FILE="+r.certificate)
	}
	return w.env
}

func (w workload) events(n int) int { return max(n/max(w.share, 1), w.endpoints) }

// A comparison is the result of a workload's rounds. The clients know nothing of
// endpoints and of walhook's settings: there, plain's figures stand beside walhook's.
type comparison struct {
	walhook      []drained
	client, lean []outcome
}

// workloads has walhook, the bare client and the lean one drain each kind in turns.
func (b *bench) workloads(ctx context.Context) error {
	results := make([]comparison, len(kinds))
	var arms []arm
	for i, w := range kinds {
		r := &results[i]
		arms = append(arms, arm{w.name + ", walhook", func(round int) error { return keep(&r.walhook)(b.runWalhook(ctx, w, round)) }})
		if w.forClients() {
			arms = append(arms,
				arm{w.name + ", bare client", func(round int) error { return keep(&r.client)(b.runClient(ctx, "client", w, round)) }},
				arm{w.name + ", lean client", func(round int) error { return keep(&r.lean)(b.runClient(ctx, "lean client", w, round)) }})
		}
	}
	if err := b.inTurns("workloads", arms); err != nil {
		return err
	}
	for i, w := range kinds {
		if !w.forClients() {
			results[i].client, results[i].lean = results[0].client, results[0].lean
		}
		b.reportWorkload(w, results[i])
	}
	b.report.flush()
	return nil
}

// forClients reports whether the clients, too, see a difference from plain.
func (w workload) forClients() bool { return w.endpoints == 1 && w.env == nil }

func (b *bench) reportWorkload(w workload, c comparison) {
	n := float64(w.events(b.n))
	perSecond := func(o outcome) float64 { return float64(o.N) / o.Took.Seconds() }
	confirmed := each(c.walhook, func(d drained) float64 { return n / d.confirmed.Seconds() })
	client, lean := each(c.client, perSecond), each(c.lean, perSecond)
	r := b.report
	r.title("workloads: %.0f events, %s", n, w.name)
	r.row("walhook, /s from its start, confirmed", confirmed, "%.0f", "")
	r.row("bare client, /s", client, "%.0f", "")
	r.row("lean client, /s", lean, "%.0f", "")
	r.row("walhook / bare client", ratios(confirmed, client), "%.2f", w.aim)
	r.row("walhook / lean client", ratios(confirmed, lean), "%.2f", "")
	r.row("CPU of walhook, µs per delivery", each(c.walhook, func(d drained) float64 { return float64(d.cpu.Microseconds()) / n }), "%.1f", "")
	r.row("  bare client, µs", each(c.client, cpuEach), "%.1f", "")
	r.row("  lean client, µs", each(c.lean, cpuEach), "%.1f", "")
	r.row("  PostgreSQL for walhook, µs", each(c.walhook, func(d drained) float64 { return float64(d.server.Microseconds()) / n }), "%.1f", "")
	r.row("peak RSS of walhook, MiB", each(c.walhook, func(d drained) float64 { return mebi(d.rss) }), "%.1f", "")
	r.row("WAL bytes per delivery", each(c.walhook, func(d drained) float64 { return float64(d.wal.bytes) / n }), "%.0f", "")
	r.row("requests beyond one per event", each(c.walhook, func(d drained) float64 { return float64(d.requests) - n }), "%.0f", "0")
}

func cpuEach(o outcome) float64 { return float64(o.CPU.Microseconds()) / float64(o.N) }
