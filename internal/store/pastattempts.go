package store

import (
	"encoding/json"
	"slices"
	"time"
)

// A PastAttempt is an attempt that has ended, as attempt_log has it.
type PastAttempt struct {
	Number     int       `json:"attempt"`
	At         time.Time `json:"at"`
	StatusCode int       `json:"status_code"` // 0: no response came
	Class      string    `json:"error_class"`
	Error      string    `json:"error"`
	DurationMS int       `json:"duration_ms"`
}

// pastAttempts is the log of a delivery's row. A delivery's only attempt is in its own columns. As
// in the view webhook_attempts, which the role that runs walhook may not read.
const pastAttempts = `CASE WHEN jsonb_typeof(d.attempt_log) = 'array' THEN d.attempt_log WHEN d.attempts = 1 THEN ` + firstEntry + ` ELSE '[]'::jsonb END::text`

// readAttempts reads pastAttempts, in order. There are none where somebody else has written the log.
func readAttempts(log []byte) (attempts []PastAttempt) {
	if json.Unmarshal(log, &attempts) != nil {
		return nil
	}
	slices.SortFunc(attempts, func(a, b PastAttempt) int { return a.Number - b.Number })
	return attempts
}
