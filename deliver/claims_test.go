package deliver

import (
	"context"
	"testing"
	"time"

	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/internal/webhook"
)

// visibleClaims answers what is visible.
type visibleClaims func(webhook.Fence) bool

// ClaimVisible is the Store's.
func (v visibleClaims) ClaimVisible(_ context.Context, f webhook.Fence) (bool, error) {
	return v(f), nil
}

func newClaims() (*claims, *schedule.Scheduler) {
	s := schedule.New(schedule.Options{Limits: schedule.Limits{MaxInFlight: 1, Window: 8, MaxMemory: 1 << 20}})
	return &claims{scheduler: s, heartbeat: newHeartbeat("clock"), compare: func() {}}, s
}

// The process reconnects while the database is asked whether the first claim is visible.
// The answer says nothing of the second, which has to be asked about.
func TestVisibleOfTheFormerClaim(t *testing.T) {
	t.Parallel()
	c, s := newClaims()
	first := webhook.Fence{Epoch: 1, ClaimXID: "100", Reconcile: true}
	second := webhook.Fence{Epoch: 1, ClaimXID: "200", Reconcile: true, Moved: true}
	var asked []string
	c.store = visibleClaims(func(f webhook.Fence) bool {
		if asked = append(asked, f.ClaimXID); len(asked) == 1 {
			s.BeginSession(&webhook.Session{}, second, 2, time.Now())
			c.sessionClaimed(second)
		}
		return true
	})
	s.BeginSession(&webhook.Session{}, first, 1, time.Now())
	c.sessionClaimed(first)
	for range 2 {
		if s.ClaimVisible(second) {
			t.Errorf("asked about claims %v, and everything counts as visible for claim 200", asked)
		}
		if err := c.compareWhenVisible(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if len(asked) != 2 || asked[1] != "200" || !s.ClaimVisible(second) {
		t.Errorf("asked about claims %v, visible: %t; want 100, then 200", asked, s.ClaimVisible(second))
	}
}

// The answer about the first claim comes when the second has just begun.
func TestVisibleOfTheFormerClaimComesLate(t *testing.T) {
	t.Parallel()
	c, s := newClaims()
	first := webhook.Fence{Epoch: 1, ClaimXID: "100", Reconcile: true}
	second := webhook.Fence{Epoch: 1, ClaimXID: "200", Reconcile: true, Moved: true}
	c.store = visibleClaims(func(f webhook.Fence) bool {
		if f.ClaimXID == "100" {
			s.BeginSession(&webhook.Session{}, second, 2, time.Now()) // the fan-out, which logs two lines before sessionClaimed
		}
		return f.ClaimXID == "100"
	})
	s.BeginSession(&webhook.Session{}, first, 1, time.Now())
	c.sessionClaimed(first)
	if err := c.compareWhenVisible(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.sessionClaimed(second)
	if s.ClaimVisible(second) {
		t.Error("everything counts as visible for claim 200, about which nobody has asked")
	}
}
