package listen

import (
	"crypto/sha256"
	"net/http"
	"sync"

	"github.com/walhook/walhook/sign"
)

// maxRemembered bounds the deliveries that are counted: after so many others one counts from the
// beginning again. They take about a megabyte.
const maxRemembered = 10_000

// An attempts counts what came of each delivery. X-Webhook-Retry would not do: it counts on in a
// replay, and a request by hand has none.
type attempts struct {
	mu    sync.Mutex
	seen  map[[sha256.Size]byte]int // hashes, because a stranger's id may be long
	order [][sha256.Size]byte       // a ring, from its oldest on
	next  int
}

// add counts an attempt, and returns its number, from 1. Requests without an id are one delivery.
func (a *attempts) add(h http.Header) int {
	id := h.Get("X-Webhook-Delivery-ID")
	if id == "" {
		id = h.Get(sign.HeaderID)
	}
	key := sha256.Sum256([]byte(id))
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.seen == nil {
		a.seen = make(map[[sha256.Size]byte]int)
	}
	if a.seen[key] == 0 {
		a.remember(key)
	}
	a.seen[key]++
	return a.seen[key]
}

// remember takes a key into the ring, in the place of the oldest where that is full.
func (a *attempts) remember(key [sha256.Size]byte) {
	if len(a.order) < maxRemembered {
		a.order = append(a.order, key)
		return
	}
	delete(a.seen, a.order[a.next])
	a.order[a.next] = key
	a.next = (a.next + 1) % maxRemembered
}
