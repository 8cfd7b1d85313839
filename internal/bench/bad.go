//go:build linux

package main

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

// A badness is a way in which endpoints misbehave.
type badness struct {
	name, url string
	unseen    bool // the receiver knows nothing of their requests
	arms      [][]steady
}

// healthy is how many endpoints stand beside the bad ones.
const healthy = 49

// bad measures how bad endpoints affect forty-nine others. Each endpoint gets the same
// rate, however many there are.
func (b *bench) bad(ctx context.Context) error {
	refusing, release, err := refusingAddress()
	if err != nil {
		return err
	}
	defer release()
	kinds := []*badness{
		{name: "hanging", url: b.receiver.url(pathHang)},
		{name: "slow (200 after 2 s)", url: b.receiver.url(pathAnswer + "?after=2s")},
		{name: "refusing the connection", url: "http://" + refusing, unseen: true},
		{name: "429 with Retry-After: 1", url: b.receiver.url(pathAnswer + "?status=429")},
	}
	numbers := []int{1}
	if !b.smoke {
		numbers = append(numbers, 10, 25)
	}
	var none []steady
	arms := []arm{{"none bad", func(int) error { return keep(&none)(b.runBad(ctx, &badness{}, 0)) }}}
	for _, kind := range kinds {
		kind.arms = make([][]steady, len(numbers))
		for i, n := range numbers {
			run := func(int) error { return keep(&kind.arms[i])(b.runBad(ctx, kind, n)) }
			arms = append(arms, arm{fmt.Sprintf("%d %s", n, kind.name), run})
		}
	}
	if err := b.inTurns("bad", arms); err != nil {
		return err
	}
	for _, kind := range kinds {
		b.reportBad(kind, numbers, none)
	}
	return nil
}

// badLoad gives every endpoint a fiftieth of the rate.
func (b *bench) badLoad(kind *badness, n int) load {
	l := b.fifty()
	l.rate = max(1, l.rate*(healthy+n)/l.endpoints)
	l.endpoints, l.bad, l.badURL = healthy+n, n, kind.url
	return l
}

const sumFailed = `SELECT coalesce(sum(attempts), 0) FROM webhook_deliveries WHERE status <> 'success'`

func (b *bench) runBad(ctx context.Context, kind *badness, n int) (s steady, err error) {
	l := b.badLoad(kind, n)
	err = b.fresh(ctx, func(db *database) error {
		if err := l.audience(ctx, b, db); err != nil {
			return err
		}
		if s, err = b.measureLoad(ctx, db, l); err != nil || !kind.unseen {
			return err
		}
		return db.QueryRow(ctx, sumFailed).Scan(&s.elsewhere)
	})
	return s, err
}

func (b *bench) reportBad(kind *badness, numbers []int, none []steady) {
	l := b.badLoad(kind, 0)
	r := b.report
	r.title("bad: %d events/s to %d endpoints for %s, and as many to each that is %s", l.rate, healthy, l.length, kind.name)
	p99, p50 := at(0.99, 0, healthy), at(0.5, 0, healthy)
	r.row("p99 beside 0, ms", each(none, p99), "%.2f", "")
	for i, n := range numbers {
		r.row(fmt.Sprintf("p99 beside %d, ms", n), each(kind.arms[i], p99), "%.2f", "")
	}
	for i, n := range numbers {
		r.row(fmt.Sprintf("p99 beside %d / 0", n), ratios(each(kind.arms[i], p99), each(none, p99)), "%.2f", "<= 1.5")
	}
	for i, n := range numbers {
		r.row(fmt.Sprintf("p50 beside %d / 0", n), ratios(each(kind.arms[i], p50), each(none, p50)), "%.2f", "")
	}
	for i, n := range numbers {
		r.row(fmt.Sprintf("requests that the %d got", n), each(kind.arms[i], func(s steady) float64 { return float64(s.elsewhere) }), "%.0f", "")
	}
	most := kind.arms[len(numbers)-1]
	r.row("oldest unconfirmed position beside the most, ms", each(most, func(s steady) float64 { return millis(s.lag) }), "%.0f", "moves")
	r.soundness(most)
	r.flush()
}

// refusingAddress returns an address that refuses connections, and that nobody else can
// get: a socket that is bound and never listens.
func refusingAddress() (address string, release func(), err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("reserve a port: %w", err)
	}
	release = func() { _ = unix.Close(fd) }
	if err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		release()
		return "", nil, fmt.Errorf("reserve a port: %w", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		release()
		return "", nil, fmt.Errorf("reserve a port: %w", err)
	}
	return fmt.Sprintf("127.0.0.1:%d", name.(*unix.SockaddrInet4).Port), release, nil
}
