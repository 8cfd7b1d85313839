package deliver

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/internal/webhook"
)

// A faultText tells an operator of a fault of ours.
type faultText struct {
	what string // is wrong
	mend string
}

var faultTexts = map[webhook.OwnFault]faultText{
	webhook.FaultSecret: {"signing secrets or headers cannot be opened",
		"WALHOOK_SECRET_KEY, or WALHOOK_SECRET_KEY_OLD, must be the key that they were sealed with; walhook secret check counts what cannot be opened, and webhook_rotate_secret(endpoint_id, '0') makes a new secret"},
	webhook.FaultProxy: {"the proxy does not connect",
		"see the proxy's log and rules, and WALHOOK_PROXY_URL with its user and password"},
	webhook.FaultDescriptors: {"no file descriptors are left",
		"raise the limit of the process (ulimit -n, LimitNOFILE) or of the machine (sysctl fs.file-max), or lower WALHOOK_MAX_IN_FLIGHT"},
	webhook.FaultPorts: {"no local ports are left",
		"widen sysctl net.ipv4.ip_local_port_range; ss -s tells who holds them"},
	webhook.FaultResolver: {"the resolver does not answer, or refuses",
		"see the name servers in /etc/resolv.conf"},
}

// An OwnFaultError is why nothing can be sent, where that is a fault of ours.
type OwnFaultError struct{ schedule.Fault }

// Error says what mends it.
func (e *OwnFaultError) Error() string {
	text := faultTexts[e.Kind]
	return fmt.Sprintf("nothing can be sent, and no attempt is counted: %s (for example for endpoint %s: %s): %s", text.what, e.Endpoint, e.Text, text.mend)
}

// stuck returns an OwnFaultError once nothing could be sent for notReadyAfter.
func stuck(s *schedule.Scheduler) error {
	f, is := s.Stuck()
	if !is || time.Since(f.Since) < notReadyAfter {
		return nil
	}
	return &OwnFaultError{f}
}

// quietFor is how long a fault must be away before its end is logged: a process that is
// short of descriptors meets their lack again and again.
const quietFor = 5 * time.Second

// A faultLog tells once that a fault of ours has begun, and once that it has ended. The
// metric walhook_own_faults_total counts.
type faultLog struct {
	log  *slog.Logger
	seen map[webhook.OwnFault]time.Time // last, of those whose end is not logged
}

func (l *faultLog) update(ongoing []schedule.Fault, now time.Time) {
	for _, f := range ongoing {
		if l.seen[f.Kind].IsZero() {
			text := faultTexts[f.Kind]
			l.log.Warn("deliveries wait for a fault of walhook's own to be mended; no attempt is counted",
				"kind", f.Kind, "what", text.what, "mend", text.mend, "endpoint", f.Endpoint, "error", f.Text)
		}
		l.seen[f.Kind] = now
	}
	for _, kind := range webhook.OwnFaults {
		if at, logged := l.seen[kind]; logged && now.Sub(at) >= quietFor {
			l.log.Info("the fault is mended, and deliveries go on", "kind", kind)
			delete(l.seen, kind)
		}
	}
}
