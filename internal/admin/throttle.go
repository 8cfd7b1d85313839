package admin

import (
	"log/slog"
	"sync"
	"time"
)

// noticeEvery is how often the log says what anybody can bring about who reaches the port:
// often enough to be seen, too seldom to fill a disk.
const noticeEvery = 10 * time.Second

// A throttle lets one line through in noticeEvery.
type throttle struct {
	mu     sync.Mutex
	until  time.Time
	others uint64 // that it did not let through
}

// turn says whether to log, and how many lines there would have been since the last one.
func (t *throttle) turn() (others uint64, say bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if now.Before(t.until) {
		t.others++
		return 0, false
	}
	others, t.others, t.until = t.others, 0, now.Add(noticeEvery)
	return others, true
}

// A troubleLog is what net/http writes its complaints to, about TLS handshakes above all.
type troubleLog struct {
	log *slog.Logger
	throttle
}

// Write is io.Writer's.
func (t *troubleLog) Write(line []byte) (int, error) {
	if others, say := t.turn(); say {
		t.log.Warn("admin server: "+string(line[:max(0, len(line)-1)]), "others_since", others)
	}
	return len(line), nil
}
