package faults

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"
)

// adminFlood opens twenty thousand connections to the admin server, which hang: they say
// nothing, or the beginning of a request. Health is answered all the time, memory stays, and
// deliveries go on. Their p99 is a figure: while connections are being opened they cost both
// sides CPU, and here both sides have the same two cores.
func adminFlood(t *testing.T, s Setup) {
	const (
		connections = 20_000
		moreMemory  = 32 << 20
		goOn        = time.Second // bounds the p99: other scenarios and processes take CPU too
	)
	x := newTrial(t, s)
	x.receiver.failShare = 0
	x.start()
	x.ready()
	lasts := lasting(10 * time.Second)
	window := func() latencies {
		w := [2]time.Time{time.Now()}
		<-x.drive(Load{Rate: *rate, Duration: lasts})
		w[1] = time.Now()
		x.drain(time.Minute)
		return x.latencies(w, len(x.endpoints))
	}
	calm := window()
	health := x.watchHealth()
	flood := x.hang(connections)
	opening := window()
	open := flood.full()
	hanging := window()
	flood.stop()
	health.stop()
	x.expect(health.failed == "" && health.asked > 0, "healthz was asked %d times during the flood: %s", health.asked, health.failed)
	x.expect(health.most <= health.before+moreMemory, "%d connections took the memory from %d to %d MiB", open, health.before>>20, health.most>>20)
	for _, p99 := range []time.Duration{opening.at(0.99), hanging.at(0.99)} {
		x.expect(p99 <= calm.at(0.99)+goOn, "the p99 was %s, and %s during the flood", calm.at(0.99), p99)
	}
	x.finish(time.Minute, fmt.Sprintf("connections=%d healthz=%d within %s, memory=%d to %dMiB, p99=%s, opening %s, hanging %s: %.2f times", open, health.asked,
		health.slowest.Round(time.Millisecond), health.before>>20, health.most>>20, calm.at(0.99), opening.at(0.99), hanging.at(0.99),
		float64(hanging.at(0.99))/float64(calm.at(0.99))))
}

// A hangers is connections to the admin server, which clients hold, whatever the server does.
type hangers struct {
	trial  *Trial
	addr   string
	places chan net.Conn // as many as clients may hold; nil: not yet
	opened chan struct{} // closed when all are
	cancel context.CancelFunc
	ended  sync.WaitGroup
}

// hang opens connections as fast as it can, and then so many that the server, which closes
// those that hang, always has a crowd.
func (x *Trial) hang(connections int) *hangers {
	const dialers, thenEvery = 8, 20 * time.Millisecond
	x.Helper()
	connections = min(connections, x.descriptors(connections))
	ctx, cancel := context.WithCancel(x.Context())
	f := &hangers{trial: x, addr: x.living()[0].admin, places: make(chan net.Conn, connections), opened: make(chan struct{}), cancel: cancel}
	for range connections {
		f.places <- nil
	}
	f.ended.Go(func() {
		var first sync.WaitGroup
		for d := range dialers {
			first.Go(func() {
				for i := d; i < connections && ctx.Err() == nil; i += dialers {
					f.open(ctx, i)
				}
			})
		}
		first.Wait()
		close(f.opened)
		more := time.NewTicker(thenEvery)
		defer more.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-more.C:
				f.open(ctx, i)
			}
		}
	})
	return f
}

// open opens a connection in the place of the one that has been there for longest.
func (f *hangers) open(ctx context.Context, i int) {
	if held := <-f.places; held != nil {
		_ = held.Close()
	}
	conn, err := (&net.Dialer{Timeout: timeout}).DialContext(ctx, "tcp", f.addr)
	if err == nil {
		_, _ = conn.Write([]byte([]string{"", "G", "GET /healthz HTTP/1.1\r\nHost: 127"}[i%3])) // if the server is faster, that is its right
	}
	f.places <- conn
}

// full waits until all are open, and returns how many the clients hold.
func (f *hangers) full() (held int) {
	f.trial.Helper()
	select {
	case <-f.opened:
	case <-time.After(2 * time.Minute):
		f.trial.Fatal("the connections cannot be opened")
	}
	for range cap(f.places) {
		conn := <-f.places
		if conn != nil {
			held++
		}
		f.places <- conn
	}
	return held
}

func (f *hangers) stop() {
	f.cancel()
	f.ended.Wait()
	for range cap(f.places) {
		if conn := <-f.places; conn != nil {
			_ = conn.Close()
		}
	}
}

// descriptors raises this process's limit where it may, and returns how many connections fit
// in beside everything else.
func (x *Trial) descriptors(wanted int) int {
	const beside = 1000
	x.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		x.Fatal(err)
	}
	before := limit
	limit.Cur = max(limit.Cur, uint64(wanted+beside))
	limit.Max = max(limit.Max, limit.Cur)
	if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return int(before.Cur) - beside
	}
	x.Cleanup(func() { _ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before) })
	return wanted
}

// A health is how a walhook is during a flood.
type health struct {
	asked   int
	failed  string        // the first time
	slowest time.Duration // answer
	before  int64         // bytes of resident memory
	most    int64

	stop func()
}

// watchHealth asks for it as a probe does, by a connection of its own each time.
func (x *Trial) watchHealth() *health {
	const every, within = 100 * time.Millisecond, 2 * time.Second
	p := x.living()[0]
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: within}
	ctx, cancel := context.WithCancel(x.Context())
	h := &health{before: x.resident(p)}
	var watch sync.WaitGroup
	watch.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for ctx.Err() == nil {
			began := time.Now()
			why := probe(ctx, client, "http://"+p.admin+"/healthz")
			if ctx.Err() != nil {
				return
			}
			if why != "" && h.failed == "" {
				h.failed = why
			}
			h.asked++
			h.slowest = max(h.slowest, time.Since(began))
			h.most = max(h.most, x.resident(p))
			<-tick.C
		}
	})
	h.stop = func() {
		cancel()
		watch.Wait()
	}
	return h
}

// probe returns why a URL is not answered with 200; "": it is.
func probe(ctx context.Context, client *http.Client, url string) string {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err.Error()
	}
	resp, err := client.Do(req)
	if err != nil {
		return err.Error()
	}
	if err := resp.Body.Close(); err != nil {
		return err.Error()
	}
	if resp.StatusCode != http.StatusOK {
		return resp.Status
	}
	return ""
}
