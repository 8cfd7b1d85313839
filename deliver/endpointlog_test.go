package deliver

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/deliver/schedule"
)

func TestEndpointLog(t *testing.T) {
	t.Parallel()
	endpoint, delivery := uuid.MustParse("44444444-4444-4444-8444-444444444444"), uuid.MustParse("01999999-9999-7999-8999-999999999999")
	var out bytes.Buffer
	l := endpointLog{log: slog.New(slog.NewTextHandler(&out, nil))}
	said := func() (lines []string) {
		lines = strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		out.Reset()
		return lines
	}
	now := time.Now()

	t.Run("a line for each change, with what it takes to look further", func(t *testing.T) {
		for change, want := range map[schedule.Change][]string{
			schedule.BreakerOpened: {"level=WARN", "its breaker has opened", `reason="connection refused"`, "GROUP BY"},
			schedule.BreakerClosed: {"level=INFO", "breaker has closed", "webhook_ops_endpoints"},
			schedule.Disabled:      {"level=WARN", "is disabled"},
			schedule.Deleted:       {"level=INFO", "was deleted", "webhook_audit"},
			schedule.Paused:        {"level=INFO", "is paused"},
			schedule.Resumed:       {"level=INFO", "goes on"},
		} {
			l.update([]schedule.Transition{{Change: change, Endpoint: endpoint, Organization: "org_1", Host: "https://u.example", Reason: "connection refused"}}, schedule.Exhausted{}, now)
			lines := said()
			for _, w := range append(want, "endpoint="+endpoint.String(), "organization=org_1", "host=https://u.example") {
				if len(lines) != 1 || !strings.Contains(lines[0], w) {
					t.Errorf("change %d: %q, want %q", change, lines, w)
				}
			}
		}
	})

	t.Run("deliveries that are given up are a line a minute", func(t *testing.T) {
		gaveUp := func(n int, after time.Duration, want string) {
			t.Helper()
			l.update(nil, schedule.Exhausted{Count: n, Endpoint: endpoint, Delivery: delivery, Organization: "org_1", Reason: "503"}, now.Add(after))
			if got := out.String(); (want == "") != (got == "") || !strings.Contains(got, want) {
				t.Errorf("after %v: %q, want %q", after, got, want)
			}
			out.Reset()
		}
		gaveUp(0, 0, "")
		gaveUp(3, 0, "count=3")
		gaveUp(4, time.Second, "")
		gaveUp(5, 30*time.Second, "")
		gaveUp(0, time.Minute, "count=9")
		gaveUp(0, time.Hour, "")
		gaveUp(1, 2*time.Hour, "count=1")
	})
}
