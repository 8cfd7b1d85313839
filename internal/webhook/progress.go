package webhook

import "time"

// The tasks that may take long, as webhook_status.progress names them.
const (
	Reconciling = "reconciling" // events are compared with deliveries
	Resealing   = "resealing"   // secrets and headers are sealed anew
	Replaying   = "replaying"   // what is due in webhook_deliveries is sent
)

// A Progress says how far a task is. Figures that are 0 are unknown, or of another task.
type Progress struct {
	Task      string    `json:"-"`
	Began     time.Time `json:"began"`
	Percent   int       `json:"percent,omitempty"`
	Left      Seconds   `json:"seconds_left,omitempty"` // at the present rate
	Position  time.Time `json:"position,omitzero"`      // events of before are compared
	Inserted  int       `json:"inserted,omitempty"`
	Done      int       `json:"done,omitempty"`
	Waiting   int64     `json:"waiting,omitempty"`
	PerSecond int       `json:"per_second,omitempty"`
	Ended     bool      `json:"-"`
}

// Seconds is a duration that JSON has in whole seconds.
type Seconds int64

// String is for the log.
func (s Seconds) String() string { return (time.Duration(s) * time.Second).String() }

// TellEvery bounds how often a task says how far it is.
const TellEvery = 10 * time.Second

// A Meter measures a task. Its zero value has not begun.
type Meter struct {
	Began time.Time
	told  time.Time
}

// Due reports whether to tell again, at most each TellEvery. The first call begins.
func (m *Meter) Due(now time.Time) bool {
	if m.Began.IsZero() {
		m.Began, m.told = now, now
		return false
	}
	if now.Sub(m.told) < TellEvery {
		return false
	}
	m.told = now
	return true
}

// Progress returns how far the task is when share of it is done, from 0 to 1.
func (m *Meter) Progress(task string, now time.Time, share float64) Progress {
	p := Progress{Task: task, Began: m.Began}
	if share > 0 && share <= 1 {
		p.Percent = int(100 * share)
		p.Left = Seconds(now.Sub(m.Began).Seconds() * (1 - share) / share)
	}
	return p
}
