package deliver

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/deliver/schedule"
)

// An endpointLog tells operators what changes about endpoints: one line for each change, and
// none for an attempt. Deliveries that are given up are one line a minute.
type endpointLog struct {
	log       *slog.Logger
	exhausted schedule.Exhausted // since toldAt
	toldAt    time.Time
}

// exhaustedEvery is how often deliveries that are given up are logged. An endpoint that is
// dead for days gives up thousands.
const exhaustedEvery = time.Minute

// Statements that tell more, for operators.
const (
	lookAtEndpoint = `SELECT * FROM webhook_ops_endpoints WHERE id = '%s'`
	lookAtFailures = `SELECT status, error_class, status_code, error, count(*) FROM webhook_deliveries WHERE endpoint_id = '%s' AND status IN ('retrying', 'failed') AND id >= webhook_uuid_at(now() - interval '1 day') GROUP BY 1, 2, 3, 4`
	lookAtAttempts = `SELECT attempt, at, status_code, error_class, error FROM webhook_attempts WHERE delivery_id = '%s' ORDER BY attempt`
)

// update logs what has changed.
func (l *endpointLog) update(changes []schedule.Transition, exhausted schedule.Exhausted, now time.Time) {
	for i := range changes {
		l.changed(&changes[i])
	}
	if l.exhausted.Count == 0 {
		l.exhausted = exhausted
	} else {
		l.exhausted.Count += exhausted.Count
	}
	if l.exhausted.Count > 0 && now.Sub(l.toldAt) >= exhaustedEvery {
		e := l.exhausted
		l.exhausted, l.toldAt = schedule.Exhausted{}, now
		l.log.Warn("deliveries have failed for good: the schedule is used up; webhook_replay sends one again", "count", e.Count, "delivery", e.Delivery,
			"endpoint", e.Endpoint, "organization", e.Organization, "host", e.Host, "reason", e.Reason, "sql", fmt.Sprintf(lookAtAttempts, e.Delivery))
	}
}

func (l *endpointLog) changed(t *schedule.Transition) {
	say, text, sql := l.log.Info, "", lookAtEndpoint
	switch t.Change {
	case schedule.BreakerOpened:
		say, text, sql = l.log.Warn, "an endpoint only fails: its breaker has opened, and all but one probe at a time waits", lookAtFailures
	case schedule.BreakerClosed:
		text = "an endpoint's breaker has closed"
	case schedule.Disabled:
		say, text = l.log.Warn, "an endpoint is disabled: what is owed to it is cancelled"
	case schedule.Deleted:
		text, sql = "an endpoint was deleted: what is owed to it is cancelled", `SELECT * FROM webhook_audit WHERE endpoint_id = '%s' ORDER BY id`
	case schedule.Paused:
		text = "an endpoint is paused: what is owed to it waits"
	case schedule.Resumed:
		text = "an endpoint goes on after a pause"
	}
	say(text, "endpoint", t.Endpoint, "organization", t.Organization, "host", t.Host, "reason", t.Reason, "sql", lookAt(sql, t.Endpoint))
}

func lookAt(sql string, endpoint uuid.UUID) string { return fmt.Sprintf(sql, endpoint) }
