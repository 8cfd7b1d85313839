package faults

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
	zerologger "github.com/rs/zerolog/log"
)

// A Line is a proxy between walhook and PostgreSQL, for SQL and replication.
type Line struct {
	proxy *toxiproxy.Proxy
	t     *testing.T
}

// connect puts a new line between walhook and the database.
func (l *Line) connect(upstream string) (string, error) {
	zerologger.Logger = zerolog.Nop()
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.New(io.Discard))
	l.proxy = toxiproxy.NewProxy(server, "postgres", "127.0.0.1:0", upstream)
	if err := l.proxy.Start(); err != nil {
		return "", fmt.Errorf("start a proxy: %w", err)
	}
	l.t.Cleanup(l.proxy.Stop)
	return l.proxy.Listen, nil
}

// poison makes the line bad, in one direction: "upstream" is from walhook to PostgreSQL.
func (l *Line) poison(name, direction, kind, attributes string) {
	l.t.Helper()
	toxic := fmt.Sprintf(`{"name": %q, "type": %q, "stream": %q, "attributes": %s}`, name, kind, direction, attributes)
	if _, err := l.proxy.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
		l.t.Fatalf("%s: %v", toxic, err)
	}
}

// heal makes the line good again.
func (l *Line) heal() { l.proxy.Toxics.ResetToxics(context.WithoutCancel(l.t.Context())) }

// newLine makes a trial in which walhook connects through a line.
func newLine(t *testing.T, s Setup) (*Trial, *Line) {
	t.Helper()
	line := &Line{t: t}
	s.Line = line.connect
	return newTrial(t, s), line
}

// resettable prepares the line for resets: toxiproxy resets only connections that were
// made after it learned of the reset.
func (l *Line) resettable() {
	for _, direction := range []string{"upstream", "downstream"} {
		l.poison(direction, direction, "reset_peer", `{"timeout": 0}, "toxicity": 0`)
	}
}

// resetAll resets every connection that carries something within a moment.
func (l *Line) resetAll() {
	l.t.Helper()
	const moment = 100 * time.Millisecond
	for _, toxicity := range []string{`{"toxicity": 1}`, `{"toxicity": 0}`} {
		for _, direction := range []string{"upstream", "downstream"} {
			if _, err := l.proxy.Toxics.UpdateToxicJson(direction, strings.NewReader(toxicity)); err != nil {
				l.t.Fatal(err)
			}
		}
		time.Sleep(moment)
	}
}

// lineResets resets the connections every three seconds.
func lineResets(t *testing.T, s Setup) {
	const every = 3 * time.Second
	line := &Line{t: t}
	s.Line = func(upstream string) (string, error) {
		address, err := line.connect(upstream)
		line.resettable()
		return address, err
	}
	x := newTrial(t, s)
	p := x.start()
	x.ready()
	done := x.drive(Load{Rate: *rate, Duration: lasting(30 * time.Second)})
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	stood, confirmed := 0, x.slot().Confirmed
	for loaded := true; loaded; {
		select {
		case <-done:
			loaded = false
		case <-ticker.C:
			now := x.slot().Confirmed
			if now == confirmed {
				stood++
			}
			confirmed = now
			over := x.crash(nil) // a cut
			line.resetAll()
			over()
		}
	}
	line.heal()
	x.expect(10*stood <= len(x.crashes), "nothing was confirmed in %d of %d spans between resets", stood, len(x.crashes))
	x.monitor.mu.Lock()
	senders := len(x.monitor.senders)
	x.monitor.mu.Unlock()
	x.expect(2*senders > len(x.crashes), "there were %d walsenders in %d resets: the line did not reset", senders, len(x.crashes))
	x.expect(p.Running(), "%s has ended by itself: %v", p.Name, p.Err)
	x.finish(time.Minute, fmt.Sprintf("walsenders=%d", senders))
}

// lineLatency delays everything between PostgreSQL and walhook, so that an answer takes
// half a second. (With a second nothing could be sent, because a look-up of an endpoint may
// not be older.) Nothing is lost, deliveries end at a lower rate, and none is left behind
// once the line is good again.
func lineLatency(t *testing.T, s Setup) {
	const latency, settles = 250 * time.Millisecond, 10 * time.Second
	const perSecond = 20
	x, line := newLine(t, s)
	x.start()
	x.ready()
	for _, direction := range []string{"upstream", "downstream"} {
		line.poison(direction, direction, "latency", fmt.Sprintf(`{"latency": %d}`, latency.Milliseconds()))
	}
	lasts := lasting(30 * time.Second)
	<-x.drive(Load{Rate: *rate, Duration: lasts})
	loaded := x.ended()
	<-time.After(settles)
	after := x.ended()
	owed := x.owed()
	x.sameSender()
	whileLoaded, afterwards := float64(loaded)/lasts.Seconds(), float64(after-loaded)/settles.Seconds()
	x.expect(whileLoaded >= perSecond && (afterwards >= perSecond || after == owed), "%.0f deliveries ended per second, then %.0f, %d of %d", whileLoaded, afterwards, after, owed)
	line.heal()
	x.finish(time.Minute, fmt.Sprintf("ended per second=%.0f, then %.0f, %d of %d", whileLoaded, afterwards, after, owed))
}

// ended is the number of deliveries that have ended.
func (x *Trial) ended() (ended int) {
	x.Helper()
	var open int
	if err := x.pool.QueryRow(x.Context(), selectProgress).Scan(&ended, &open); err != nil {
		x.Fatal(err)
	}
	return ended
}

// sameSender expects that the replication connection was never lost.
func (x *Trial) sameSender() {
	x.monitor.mu.Lock()
	defer x.monitor.mu.Unlock()
	senders := len(x.monitor.senders)
	x.expect(senders == 1, "there were %d walsenders", senders)
}

// lineNarrow lets 32 KB/s through, for each connection and direction. The load's stream
// fits into that; one big transaction takes its time.
func lineNarrow(t *testing.T, s Setup) {
	const kilobytes, fits, big, perSecond = 32, 10, 500, 15
	x, line := newLine(t, s)
	x.start()
	x.ready()
	for _, direction := range []string{"upstream", "downstream"} {
		line.poison(direction, direction, "bandwidth", fmt.Sprintf(`{"rate": %d}`, kilobytes))
	}
	began := time.Now()
	done := x.drive(Load{Rate: fits, Duration: lasting(30 * time.Second)})
	if err := x.driver.copy(t.Context(), x.driver.newEvents(big), false); err != nil {
		t.Fatal(err)
	}
	<-done
	drained := x.drain(2 * time.Minute)
	x.sameSender()
	pace := float64(x.owed()) / time.Since(began).Seconds()
	x.expect(pace >= perSecond, "%.1f deliveries ended per second", pace)
	line.heal()
	x.finish(time.Minute, fmt.Sprintf("drained=%.1fs ended per second=%.1f", drained.Seconds(), pace))
}

// lineBlackHole swallows everything, without closing a connection.
func lineBlackHole(t *testing.T, s Setup) {
	const before, holds, noticedAtMost, backAtMost = 4 * time.Second, 25 * time.Second, 15 * time.Second, 20 * time.Second
	const interrupted = "stream interrupted"
	x, line := newLine(t, s)
	p := x.start()
	x.ready()
	stop := x.driveOn(Load{Rate: *rate})
	defer stop()
	<-time.After(before)
	known := p.logged(interrupted)
	began, over := time.Now(), x.crash(nil)
	for _, direction := range []string{"upstream", "downstream"} {
		line.poison(direction, direction, "timeout", `{"timeout": 0}`)
	}
	unready := time.Duration(0)
	x.eventually(holds, "the log says that the stream is interrupted", func() bool {
		if status, _ := p.ready(t.Context()); status != 200 && unready == 0 {
			unready = time.Since(began)
		}
		return p.logged(interrupted) > known
	})
	noticed := time.Since(began)
	x.expect(noticed <= noticedAtMost, "the black hole was noticed after %s", noticed)
	x.expect(unready > 0 && unready <= noticedAtMost, "readyz told of the black hole after %s", unready)
	<-time.After(holds - noticed)
	line.heal()
	over()
	healed := time.Now()
	end := insertLSN(t.Context(), x.pool)
	x.eventually(time.Minute, "what was committed in the black hole is confirmed", func() bool { return x.slot().Confirmed >= end })
	back := time.Since(healed)
	x.expect(back <= backAtMost, "caught up %s after the black hole", back)
	<-time.After(before)
	stop()
	x.finish(time.Minute, fmt.Sprintf("noticed=%s unready=%s back=%s", noticed.Round(time.Millisecond), unready.Round(time.Millisecond), back.Round(time.Millisecond)))
}
