package deliver

import (
	"context"
	"sync"
	"time"

	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/internal/webhook"
)

// A claimStore has the statement of claims.
type claimStore interface {
	ClaimVisible(ctx context.Context, fence webhook.Fence) (bool, error)
}

// claims start the comparison that a session's claim makes due. The retrier's loop drives
// them.
type claims struct {
	scheduler *schedule.Scheduler
	store     claimStore
	heartbeat *heartbeat // the retrier's
	compare   func()     // starts a comparison of outbox and deliveries
	asked     time.Time  // the last check whether the claim is visible

	mu      sync.Mutex    // guards the rest, which the fan-out sets
	claim   webhook.Fence // of the session that claimed last
	claimed time.Time     // when it claimed the slot; zero: no comparison waits
	early   bool          // a comparison ran before all was visible; another follows
}

// sessionClaimed notes that a session has claimed the slot. A comparison waits if one is
// due, or if transactions from before the claim may not be visible yet.
func (c *claims) sessionClaimed(fence webhook.Fence) {
	visible := c.scheduler.ClaimVisible(fence)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.claim, c.claimed, c.early = fence, time.Time{}, false
	if fence.Reconcile || !visible {
		c.claimed = time.Now()
	}
}

// visibleWithin bounds how long a comparison waits for transactions from before the
// claim. If long ones are still open, it compares what is visible, and once more when
// they have ended.
const visibleWithin = 3 * time.Second

// visibleEvery is how often it is checked whether those have ended.
const visibleEvery = time.Second

// compareWhenVisible starts the comparison once all transactions are visible that the
// stream will not bring.
func (c *claims) compareWhenVisible(ctx context.Context) error {
	c.mu.Lock()
	fence, claimed, early := c.claim, c.claimed, c.early
	c.mu.Unlock()
	if claimed.IsZero() || early && time.Since(c.asked) < visibleEvery {
		return nil
	}
	c.asked = time.Now()
	ctx, cancel := c.heartbeat.statement(ctx)
	defer cancel()
	visible, err := c.store.ClaimVisible(ctx, fence)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.claimed != claimed { // another session has claimed
		return nil
	}
	switch {
	case visible:
		c.claimed = time.Time{}
		c.scheduler.SetClaimVisible(fence)
		c.compare()
	case !c.early && time.Since(claimed) > visibleWithin:
		c.early = true
		c.compare()
	}
	return nil
}
