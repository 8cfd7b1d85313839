package deliver

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/internal/webhook"
)

// A process is one walhook. Its loops are the real ones, except the outer loop of the
// fan-out, which reads a channel.
type process struct {
	s        *simulation
	number   int
	engine   *Engine
	batches  chan webhook.Batch
	thaws    time.Time     // frozen until then
	looked   time.Time     // when watch was last called
	held     time.Time     // when it last ran and held the slot
	without  time.Duration // how long it has run since it lost the slot
	reported reported
	stopped  bool // it drains
	ended    bool
}

// targets makes Targets. It sends no requests.
var targets = send.NewSender(send.SenderConfig{})

// simulatedSchedule is short enough to end within a run.
var simulatedSchedule = schedule.Backoff{time.Second, 5 * time.Second}

func (s *simulation) start() {
	s.births++
	p := &process{s: s, number: s.births, batches: make(chan webhook.Batch, 4), looked: time.Now()}
	e := newEngine(Config{Limits: s.limits, RecoveryWindow: time.Hour, Store: &simulatedStore{p}, Sender: targets, Log: s.log},
		schedule.New(schedule.Options{Limits: s.limits, Backoff: simulatedSchedule, Jitter: s.rng.Float64}))
	p.engine = e
	e.fanOut.holder = s.id(time.Now())
	e.send = p.send
	for _, h := range append(e.heartbeats, e.reconciler.heartbeat) {
		h.waits = s.wait
	}
	ctx := s.t.Context()
	e.workers.run = func(d *schedule.Delivery) {
		s.spawn("attempt", p, func() {
			for d != nil {
				d = e.attempt(ctx, d)
			}
		})
	}
	p.loop("fan-out", p.fanOut)
	p.loop("recorder", e.recorder.run)
	p.loop("retrier", e.retrier.run)
	p.loop("finder", e.finder.run)
	p.loop("directory", e.directory.run)
	p.loop("clock", e.clock.run)
	p.loop("reconciler", e.reconciler.run)
	s.spawn("stream", p, p.stream)
	s.spawn("lease", p, p.keepLease)
	s.processes = append(s.processes, p)
	s.note("process %d starts", p.number)
}

func (p *process) loop(name string, run func(context.Context) error) {
	p.s.spawn(name, p, func() {
		if err := run(p.s.t.Context()); err != nil {
			p.s.note("ends: %v", err)
			p.ended = true
		}
	})
}

func (p *process) fanOut(ctx context.Context) error {
	for {
		var b webhook.Batch
		p.s.await(func() bool {
			select {
			case b = <-p.batches:
				return true
			default:
				return false
			}
		})
		f := p.engine.fanOut
		if err := f.processAll(ctx, f.gather(b, p.batches)); err != nil {
			return err
		}
	}
}

// stop drains, as Run does when its context ends.
func (p *process) stop() {
	p.s.note("process %d is to stop", p.number)
	p.stopped = true
	w := p.engine.scheduler
	w.Stop()
	p.s.spawn("drain", p, func() {
		for end := time.Now().Add(p.engine.timeout + drainMargin); time.Now().Before(end); {
			p.s.pass(schedule.ParkEvery)
			w.ToRecord.Raise()
			if w.Drained(p.connection() != nil) {
				break
			}
		}
		if c := p.connection(); c != nil {
			p.engine.noteEnd(p.s.t.Context())
			if p.connection() == c {
				p.s.db.confirm(c.session.Flushed())
			}
		}
		p.ended = true
	})
}

// connection returns the process's hold of the slot, or nil.
func (p *process) connection() *connection {
	if slot := p.s.db.slot; slot != nil && slot.connection != nil && slot.connection.process == p {
		return slot.connection
	}
	return nil
}

// watch notes when a process last ran and held the slot, and how long it has run without
// it. Frozen time does not count, up to the first step after the freeze.
func (p *process) watch() {
	now := time.Now()
	switch has, turned := p.connection() != nil, !p.looked.Before(p.thaws); {
	case has && !p.frozen():
		p.held, p.without = now, 0
	case has:
		p.without = 0
	case turned:
		p.without += now.Sub(p.looked)
	}
	p.looked = now
}

// mayNotSend returns why a process must not send, or "". A process that runs notices that
// its connection is cut. A frozen one notices after the freeze. Until then it relies on
// what it saw before, but never for longer than the lease: within that time the server
// gives the slot to nobody else for the process's silence.
func (p *process) mayNotSend() string {
	switch lost := time.Since(p.held); {
	case lost >= simulatedLease:
		return fmt.Sprintf("%v after it was last seen that the slot is its process's", lost)
	case p.without > noticed:
		return fmt.Sprintf("%v after the slot was lost", p.without)
	}
	return ""
}

func (p *process) frozen() bool { return p != nil && time.Now().Before(p.thaws) }

// bury ends a process: everything in memory is gone. Deliveries under way, and those
// whose outcomes were not recorded, may be sent once more.
func (s *simulation) bury(p *process) {
	s.note("process %d is gone", p.number)
	s.kill(p)
	p.excuse()
	if p.connection() != nil {
		s.db.slot.connection = nil
	}
	s.processes = slices.DeleteFunc(s.processes, func(o *process) bool { return o == p })
}

// excuse allows deliveries that a process leaves unrecorded to be sent once more.
func (p *process) excuse() {
	sent, _ := p.engine.scheduler.Unrecorded()
	for _, id := range sent {
		p.s.journal.excuse(id, 1)
	}
}

// inMemory returns the number of deliveries that a process holds.
func (p *process) inMemory() int {
	stats := p.engine.scheduler.Stats(time.Now())
	return stats.Window + stats.Parking
}

// tend buries processes that have ended, and starts one if there is none.
func (s *simulation) tend() {
	for _, p := range slices.Clone(s.processes) {
		if p.watch(); p.ended {
			s.bury(p)
		}
	}
	if len(s.processes) == 0 {
		s.start()
	}
}

// active returns the process that holds the slot, or nil.
func (s *simulation) active() *process {
	for _, p := range s.processes {
		if p.connection() != nil {
			return p
		}
	}
	return nil
}
