package deliver

import (
	"encoding/binary"
	"flag"
	"fmt"
	"hash/fnv"
	"iter"
	"log/slog"
	"math"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/deliver/schedule"
)

// The simulation runs the whole pipeline over a database, a stream and receivers in
// memory (see their files), and injects faults. One seed decides which loop runs next,
// what fails, and for how long. So a run that fails can be repeated step by step:
//
//	go test ./deliver -run TestSimulation -sim.seed=N -v
//
// Nothing runs in parallel: every loop and every attempt is a coroutine. It runs until it
// waits, or calls the database, the stream or a receiver. A process may die at each of
// these points, and between a commit and its answer.

var (
	simSeed = flag.Uint64("sim.seed", 0, "replay this seed of the simulation, and log each step")
	simRuns = flag.Int("sim.runs", 0, "how many random seeds the simulation runs for each value of ParkAfter; 0: seeds from 1 on, for ten seconds, or three with the race detector")
)

var parkAfters = map[string]time.Duration{"park=500ms": 500 * time.Millisecond, "park=0": 0}

func TestSimulation(t *testing.T) {
	t.Parallel()
	for name, parkAfter := range parkAfters {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if *simSeed != 0 {
				_, violations := simulate(t, *simSeed, parkAfter, t.Log)
				report(t, violations)
				return
			}
			runs, steps := 0, 0
			for begun := time.Now(); !t.Failed() && (*simRuns > runs || *simRuns == 0 && time.Since(begun) < simulated); runs++ {
				seed := uint64(runs + 1) // the same in every run of the tests
				if *simRuns > 0 {
					seed = 1 + rand.Uint64N(math.MaxUint64)
				}
				n, violations := simulate(t, seed, parkAfter, nil)
				steps += n
				if report(t, violations); t.Failed() {
					t.Logf("replay it with: go test ./deliver -run 'TestSimulation/%s$' -sim.seed=%d -v", name, seed)
				}
			}
			t.Logf("%d seeds, %d steps each", runs, steps/max(runs, 1))
		})
	}
}

func TestSimulationReplaysExactly(t *testing.T) {
	t.Parallel()
	for name, parkAfter := range parkAfters {
		for range 3 {
			seed := rand.Uint64()
			var digests [2]uint64
			for i := range digests {
				sum := fnv.New64a()
				simulate(t, seed, parkAfter, func(line ...any) { fmt.Fprint(sum, line...) })
				digests[i] = sum.Sum64()
			}
			if digests[0] != digests[1] {
				t.Errorf("%s: two runs of seed %d have different traces", name, seed)
			}
		}
	}
}

func report(t *testing.T, violations []string) {
	t.Helper()
	for _, v := range violations {
		t.Error(v)
	}
}

// simulate runs one seed to its end. It logs each step to trace, if that is not nil. It
// returns the number of steps, and the promises that were broken.
func simulate(t *testing.T, seed uint64, parkAfter time.Duration, trace func(...any)) (steps int, violations []string) {
	synctest.Test(t, func(t *testing.T) {
		s := newSimulation(t, seed, parkAfter, trace)
		defer s.end()
		s.run()
		steps, violations = s.steps, s.violations
	})
	return steps, violations
}

// A simulation is one run.
type simulation struct {
	t          *testing.T
	trace      func(...any) // nil: no trace
	rng        *rand.Rand
	limits     schedule.Limits
	log        *slog.Logger
	began      time.Time
	steps      int
	tasks      []*task
	running    *task
	faultRates faultRates
	ownFault   ownFault
	db         *database
	processes  []*process
	births     int
	journal    *journal
	violations []string
}

func newSimulation(t *testing.T, seed uint64, parkAfter time.Duration, trace func(...any)) *simulation {
	s := &simulation{t: t, trace: trace, rng: rand.New(rand.NewPCG(seed, 0)), began: time.Now(), log: slog.New(slog.DiscardHandler)}
	s.limits = schedule.Limits{ParkAfter: parkAfter, MaxInFlight: 4, EndpointInFlight: 2, Window: 16, MaxMemory: 4 << 10, Timeout: 2 * time.Second}
	if trace != nil {
		s.log = slog.New(slog.NewTextHandler(lines(s.note), nil))
	}
	s.journal = newJournal(s)
	s.faultRates = s.drawFaultRates()
	s.db = newDatabase(s)
	return s
}

type lines func(string, ...any)

// Write is io.Writer's.
func (l lines) Write(p []byte) (int, error) {
	l("%s", p)
	return len(p), nil
}

// note adds a line to the trace, which is the same in each run of a seed.
func (s *simulation) note(format string, args ...any) {
	if s.trace == nil {
		return
	}
	who := "-"
	if s.running != nil {
		who = s.running.String()
	}
	s.trace(fmt.Sprintf("%6d %8.3fs %-16s ", s.steps, time.Since(s.began).Seconds(), who) + fmt.Sprintf(format, args...))
}

// violate notes that a promise was broken.
func (s *simulation) violate(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.note("VIOLATED: %s", text)
	if len(s.violations) < 10 {
		s.violations = append(s.violations, fmt.Sprintf("%v in: %s", time.Since(s.began), text))
	}
}

// A task is a loop, an attempt, or a part of the world around them.
type task struct {
	name    string
	process *process // nil: part of the world
	ready   func() bool
	blocked bool // it was not ready, and no other task has run since
	yield   func(struct{}) bool
	next    func() (struct{}, bool)
	stop    func()
}

func (t *task) String() string {
	if t.process == nil {
		return t.name
	}
	return fmt.Sprintf("%d/%s", t.process.number, t.name)
}

// killed is the panic that ends a task where it waits.
type killed struct{}

func (s *simulation) spawn(name string, p *process, body func()) {
	t := &task{name: name, process: p}
	t.next, t.stop = iter.Pull(func(yield func(struct{}) bool) {
		defer func() {
			if r := recover(); r != nil && r != (killed{}) {
				s.violate("panic: %v\n%s", r, debug.Stack())
			}
		}()
		t.yield = yield
		body()
	})
	s.tasks = append(s.tasks, t)
}

// await lets other tasks run until this one is ready and chosen.
func (s *simulation) await(ready func() bool) {
	t := s.running
	t.ready = ready
	if !t.yield(struct{}{}) {
		panic(killed{})
	}
}

// step lets other tasks run.
func (s *simulation) step() { s.await(nil) }

// pass lets other tasks run for a time.
func (s *simulation) pass(d time.Duration) {
	end := time.Now().Add(d)
	s.await(func() bool { return !time.Now().Before(end) })
}

// wait replaces the select of a loop's heartbeat: the seed chooses among what is ready.
func (s *simulation) wait(timer <-chan time.Time, a, b schedule.Signal) (woken wake) {
	s.await(func() bool {
		at := s.rng.IntN(3)
		for i := range 3 {
			woken = timerFired + wake((at+i)%3)
			if arrived(woken, timer, a, b) {
				return true
			}
		}
		return false
	})
	return woken
}

func arrived(w wake, timer <-chan time.Time, a, b schedule.Signal) bool {
	switch w {
	case timerFired:
		return arrivedIn(timer)
	case firstSignal:
		return arrivedIn(a)
	default:
		return arrivedIn(b)
	}
}

func arrivedIn[T any](c <-chan T) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// runOne runs one task that is ready, and reports whether there was one.
func (s *simulation) runOne() bool {
	at := s.rng.IntN(len(s.tasks))
	for i := range s.tasks {
		t := s.tasks[(at+i)%len(s.tasks)]
		if t.blocked || t.process.frozen() {
			continue
		}
		if t.blocked = t.ready != nil && !t.ready(); !t.blocked {
			s.resume(t)
			return true
		}
	}
	return false
}

func (s *simulation) resume(t *task) {
	if s.steps++; s.steps == mostSteps {
		s.violate("livelock: %d steps", mostSteps)
	}
	s.running = t
	if _, alive := t.next(); !alive {
		s.tasks = slices.DeleteFunc(s.tasks, func(o *task) bool { return o == t })
	}
	s.running = nil
	s.unblock()
	if p := t.process; p != nil {
		if err := p.engine.scheduler.Verify(time.Now()); err != nil {
			s.violate("the scheduler of process %d is inconsistent: %v", p.number, err)
		}
	}
}

func (s *simulation) unblock() {
	for _, t := range s.tasks {
		t.blocked = false
	}
}

// advance lets time pass while no task is ready.
func (s *simulation) advance(most time.Duration) {
	time.Sleep(time.Duration(1 + s.rng.Int64N(int64(most))))
	s.unblock()
}

// kill ends the tasks of a process, or of the world, where they wait.
func (s *simulation) kill(p *process) {
	s.tasks = slices.DeleteFunc(s.tasks, func(t *task) bool {
		if t.process == p {
			t.stop()
		}
		return t.process == p
	})
}

const (
	// faultTime is how long events come and faults happen. After it, the pipeline has to
	// finish by itself.
	faultTime = 8 * time.Second

	// quietTime bounds how long that takes: all waits of the schedule, a lease, the
	// breaker's probes, and the scan.
	quietTime = time.Hour

	// mostSteps bounds the steps of a run, at ten times the usual number.
	mostSteps = 300_000
)

func (s *simulation) run() {
	s.populate()
	for end := s.began.Add(faultTime); time.Now().Before(end) && len(s.violations) == 0; {
		s.strike()
		s.tend()
		if !s.runOne() {
			s.advance(40 * time.Millisecond)
		}
	}
	s.note("calm")
	s.faultRates = faultRates{}
	s.db.calm()
	s.mendEndpoints()
	for end := time.Now().Add(quietTime); len(s.violations) == 0; {
		s.tend()
		if s.runOne() {
			continue
		}
		if s.settled() {
			break
		}
		if time.Now().After(end) {
			s.violate("not finished: %s", s.unsettled())
		}
		s.advance(400 * time.Millisecond)
	}
	if len(s.violations) == 0 {
		s.judge()
	}
}

func (s *simulation) end() {
	for _, p := range s.processes {
		s.kill(p)
	}
	s.kill(nil)
}

// chance is true in percent of the cases.
func (s *simulation) chance(percent float64) bool { return s.rng.Float64()*100 < percent }

// within draws a duration below most.
func (s *simulation) within(most time.Duration) time.Duration {
	return time.Duration(s.rng.Int64N(int64(most)))
}

// id makes a UUIDv7 of a time.
func (s *simulation) id(at time.Time) uuid.UUID {
	var id uuid.UUID
	binary.BigEndian.PutUint64(id[:8], uint64(at.UnixMilli())<<16|s.rng.Uint64()&0xffff)
	binary.BigEndian.PutUint64(id[8:], s.rng.Uint64())
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id
}

func pick[T any](s *simulation, from []T) T { return from[s.rng.IntN(len(from))] }
