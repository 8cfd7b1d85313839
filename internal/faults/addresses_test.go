package faults

import (
	"fmt"
	"net"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/oracle"
	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/webhook"
)

// specialHosts lead, or lead by some reading, to this machine or its neighbours. The
// schema accepts all of them as URLs.
var specialHosts = []string{
	"127.0.0.1", "127.1.2.3", "0.0.0.0", "localhost", "LOCALHOST",
	"2130706433", "0", "127.1", "0177.0.0.1", "0x7f000001", "0x7f.0.0.1", "017700000001", "127.0.0.1.",
	"[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]",
	deniedHost, "[::ffff:" + deniedHost + "]", "[2a00:64::7f00:1]",
	"[64:ff9b::7f00:1]", "[64:ff9b:1::7f00:1]", "[64:ff9b:1:7f00:0:100::]", "[2002:7f00:1::]", "[2001:0:7f00:1::80ff:fffe]",
	"10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "169.254.169.254", "168.63.129.16", "192.0.0.192", "198.18.0.1",
	"192.0.2.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
	"[fe80::1]", "[fc00::1]", "[fd00:ec2::254]", "[ff02::1]", "[2001:db8::1]", "[::ffff:169.254.169.254]", "[::ffff:0:127.0.0.1]",
}

// deniedHost is in networks that are allowed, and in one that is denied.
const deniedHost = "127.0.0.10"

// addresses has endpoints at addresses that no customer may reach, and a good one that
// redirects there.
func addresses(t *testing.T, s Setup) {
	const receivers = "127.0.0.9" // the only allowed address of this machine
	const eventsPerSecond = 20
	canary := listenEverywhere(t)
	s.Address = receivers
	s.Env = append(s.Env, "WALHOOK_ALLOW_NETS="+receivers+","+deniedHost+",2a00:64::/96", "WALHOOK_DENY_NETS="+deniedHost+",2a00:64::/96", "WALHOOK_ALLOW_PORTS=80,443,"+strconv.Itoa(canary.port))
	s.Schedule = "1s,1s"
	s.Endpoints = append(threeEndpoints(), oracle.Endpoint{Org: "org_1", Types: []string{"org.*"}})
	redirects := len(s.Endpoints) - 1
	first := len(s.Endpoints)
	for _, host := range specialHosts {
		s.Endpoints = append(s.Endpoints, oracle.Endpoint{Org: "org_1", Types: []string{"org.*"}, URL: fmt.Sprintf("http://%s:%d/hook?key=secret", host, canary.port)})
	}
	x := newTrial(t, s)
	x.receiver.turn(map[int]answer{redirects: says(307, "", fmt.Sprintf("Location: http://127.0.0.1:%d/", canary.port))})
	x.start()
	x.ready()
	<-x.drive(Load{Rate: eventsPerSecond, Duration: lasting(15 * time.Second)})
	x.drain(time.Minute)
	blocked := x.expectBlocked(first)
	connections := canary.connections.Load()
	x.expect(connections == 0, "%d connections were made to forbidden addresses", connections)
	x.finish(time.Minute, fmt.Sprintf("hosts=%d blocked=%d connections=%d", len(specialHosts), blocked, connections))
}

const selectBlocked = `
SELECT e.url, d.status, coalesce(d.error_class, ''), count(*), coalesce(bool_or(d.error ~ E'secret|\\d+\\.\\d+\\.\\d+\\.\\d+|:[0-9a-f]*:'), false)
FROM webhook_deliveries d JOIN webhook_endpoints e ON e.id = d.endpoint_id
WHERE d.endpoint_id = ANY($1) GROUP BY 1, 2, 3`

// expectBlocked expects that all deliveries to the endpoints from first on are blocked,
// and returns their number.
func (x *Trial) expectBlocked(first int) (blocked int) {
	x.Helper()
	ids := make([]uuid.UUID, 0, len(x.endpoints))
	for _, e := range x.endpoints[first:] {
		ids = append(ids, e.ID)
	}
	rows, err := x.pool.Query(x.Context(), selectBlocked, ids)
	if err != nil {
		x.Fatal(err)
	}
	var url, status, class string
	var n int
	var told bool
	seen := map[string]bool{}
	_, err = pgx.ForEachRow(rows, []any{&url, &status, &class, &n, &told}, func() error {
		seen[url] = true
		x.expect(class == string(webhook.ErrBlocked) && status == string(webhook.Failed), "%d deliveries to %s are %s for %q", n, url, status, class)
		x.expect(!told, "an error of a delivery to %s has its URL's query or an address", url)
		blocked += n
		return nil
	})
	if err != nil {
		x.Fatal(err)
	}
	x.expect(len(seen) == len(ids), "only %d of %d endpoints have deliveries", len(seen), len(ids))
	return blocked
}

// A Canary counts the connections to a port on all addresses of this machine.
type Canary struct {
	port        int
	connections atomic.Int64
}

func listenEverywhere(t *testing.T) *Canary {
	t.Helper()
	listener, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	c := &Canary{port: listener.Addr().(*net.TCPAddr).Port}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			c.connections.Add(1)
			conn.Close()
		}
	}()
	return c
}

func TestCanaryCounts(t *testing.T) {
	t.Parallel()
	c := listenEverywhere(t)
	hosts := []string{"127.0.0.1", "127.0.0.9"}
	if conn, err := net.Listen("tcp", "[::1]:0"); err == nil { // there is IPv6
		conn.Close()
		hosts = append(hosts, "::1")
	}
	for _, host := range hosts {
		conn, err := net.Dial("tcp", net.JoinHostPort(host, strconv.Itoa(c.port)))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	pgtest.Eventually(t, 5*time.Second, "the canary has seen all connections", func() bool { return c.connections.Load() == int64(len(hosts)) })
}
