package faults

import (
	"fmt"
	"testing"
	"time"

	"github.com/walhook/walhook/internal/oracle"
)

// deadOperators breaks a customer's endpoints and mends them, twice, and kills walhook
// meanwhile. One operators' endpoint hears of each change. Another one is dead all the
// time: no event is about it, and once it answers it gets them all.
func deadOperators(t *testing.T, s Setup) {
	const customers, times, first = 4, 2, 3
	s.Endpoints = threeEndpoints()
	for range customers {
		s.Endpoints = append(s.Endpoints, oracle.Endpoint{Org: "org_2", Types: []string{"*"}})
	}
	hears, dead := len(s.Endpoints), len(s.Endpoints)+1
	for range 2 {
		s.Endpoints = append(s.Endpoints, oracle.Endpoint{Org: "ops", Types: []string{"*"}, ForAll: true})
	}
	x := newTrial(t, s)
	refusal := says(503, "")
	mended, broken := map[int]answer{dead: refusal}, map[int]answer{dead: refusal}
	for i := range customers {
		broken[first+i] = refusal
	}
	x.receiver.turn(mended)
	p := x.start()
	x.ready()
	stop := x.driveOn(Load{Rate: *rate / 2})
	open := func(organization string) int {
		return x.count(`SELECT count(*) FROM webhook_endpoint_failures AS f JOIN webhook_endpoints AS e ON e.id = f.endpoint_id
			WHERE e.organization_id = '` + organization + `' AND f.breaker_opened_at IS NOT NULL`)
	}
	for range times {
		<-time.After(lasting(3 * time.Second))
		x.receiver.turn(broken)
		x.eventually(time.Minute, "all breakers open", func() bool { return open("org_2") == customers })
		over := x.crash(p)
		if err := p.kill(); err != nil {
			x.Fatal(err)
		}
		over()
		p = x.start()
		x.receiver.turn(mended)
		x.eventually(time.Minute, "all breakers close", func() bool { return open("org_2") == 0 })
	}
	stop()
	const events = customers * times * 2
	x.eventually(time.Minute, "operators hear of each change", func() bool {
		return x.count(`SELECT count(DISTINCT event_id) FROM webhook_deliveries WHERE status = 'success' AND starts_with(event_type, 'webhook.endpoint.')`) >= events
	})
	x.eventually(time.Minute, "the dead one's breaker opens", func() bool { return open("ops") == 1 })
	refused := len(x.requestsTo(dead))
	x.expect(refused > 0 && len(x.requestsTo(hears)) >= events, "operators got %d requests, and the dead one of them %d", len(x.requestsTo(hears)), refused)
	n := x.count(`SELECT count(*) FROM webhook_outbox WHERE starts_with(event_type, 'webhook.')`)
	x.expect(n == events, "%d events of walhook's own, want %d", n, events)
	x.receiver.turn(nil)
	x.finish(time.Minute, fmt.Sprintf("told=%d refused=%d", events, refused))
}
