package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/process"
	"github.com/walhook/walhook/internal/testkit"
)

// A proxy answers CONNECT as it is told; "": it makes tunnels.
type proxy struct {
	address string
	answer  string
	stop    func()
}

func startProxy(t *testing.T, address, answer string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{address: address, answer: answer}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				p.connect(conn)
			})
		}
	})
	p.stop = sync.OnceFunc(func() {
		listener.Close()
		wg.Wait()
	})
	t.Cleanup(p.stop)
	return p
}

func (p *proxy) connect(conn net.Conn) {
	req, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return
	}
	if p.answer != "" {
		fmt.Fprintf(conn, "HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n", p.answer)
		return
	}
	there, err := net.Dial("tcp", req.Host)
	if err != nil {
		return
	}
	defer there.Close()
	fmt.Fprintf(conn, "HTTP/1.1 200 Connected\r\n\r\n")
	var wg sync.WaitGroup
	wg.Go(func() {
		io.Copy(there, conn)
		there.Close()
	})
	io.Copy(conn, there)
	conn.Close()
	wg.Wait()
}

// get returns a status and a body of the admin server, 0 where it does not answer.
func get(w *world, url string) (int, string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, url, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(body)
}

// A proxy is away, wants another password, and answers CONNECT with 410: nothing is
// counted, no endpoint pays, and everything is delivered when it makes tunnels.
func TestAProxyThatDoesNotConnectCostsNoAttempt(t *testing.T) {
	for _, park := range []string{"500ms", "0"} {
		t.Run("park="+park, func(t *testing.T) {
			w := newWorld(t, "WALHOOK_PARK_AFTER="+park)
			free := func() string {
				port, err := process.ForWalhook.FreePort()
				if err != nil {
					t.Fatal(err)
				}
				return fmt.Sprintf("127.0.0.1:%d", port)
			}
			log := &testkit.Output{}
			w.log = io.MultiWriter(log, t.Output())
			r := newReceiver(t, always(204))
			for range 4 {
				w.endpoint(r.URL)
			}
			admin, at := free(), free()
			w.run("WALHOOK_ADMIN_ADDR="+admin, "WALHOOK_PROXY_URL=http://user:not-told@"+at)
			owed := 0
			insert := func() {
				for range 10 {
					w.insert("payment.succeeded")
					owed += 4
				}
			}
			metric := func() string {
				_, metrics := get(w, "http://"+admin+"/metrics")
				for line := range strings.Lines(metrics) {
					if value, is := strings.CutPrefix(line, `walhook_own_faults_total{kind="proxy"} `); is {
						return strings.TrimSpace(value)
					}
				}
				return ""
			}
			waiting := func(why string) {
				t.Helper()
				insert()
				before := metric()
				pgtest.Eventually(t, patience, why+": it is tried", func() bool { return metric() != before })
				pgtest.Eventually(t, patience, why+": /readyz tells", func() bool {
					status, body := get(w, "http://"+admin+"/readyz")
					return status == http.StatusServiceUnavailable && strings.Contains(body, "not delivering: proxy")
				})
				w.eventually(why+": all of it waits", `SELECT count(*) = $1 AND bool_and(attempts = 0 AND status = 'pending' AND error_class IS NULL AND attempt_log IS NULL)
					FROM webhook_deliveries`, owed)
				if n := query[int](w, `SELECT count(*) FROM webhook_endpoint_failures`) + query[int](w, `SELECT count(*) FROM webhook_endpoints WHERE NOT enabled`); n != 0 {
					t.Errorf("%s: %d endpoints pay", why, n)
				}
			}
			waiting("away")
			for _, answer := range []string{"407 Proxy Authentication Required", "410 Gone"} {
				p := startProxy(t, at, answer)
				waiting(answer)
				p.stop()
			}
			startProxy(t, at, "")
			insert()
			w.eventually("everything is delivered", `SELECT count(*) = $1 AND bool_and(status = 'success' AND attempts = 1) FROM webhook_deliveries`, owed)
			pgtest.Eventually(t, patience, "its end is logged", func() bool { return log.Lines("INFO", "is mended", "kind=proxy") == 1 })
			if status, body := get(w, "http://"+admin+"/readyz"); status != http.StatusOK {
				t.Errorf("/readyz: %d %s", status, body)
			}
			if n := log.Lines("WARN", "kind=proxy"); n != 1 {
				t.Errorf("%d warnings", n)
			}
			if log.Lines("a proxy dials endpoints") != 1 || strings.Contains(log.String(), "not-told") {
				t.Error("the log does not tell of the proxy, or tells its password")
			}
			if n := len(r.requests()); n != owed {
				t.Errorf("%d requests, want %d", n, owed)
			}
		})
	}
}

// A process stops in time while everything waits.
func TestAStopWhileAProxyIsAway(t *testing.T) {
	w := newWorld(t, "WALHOOK_PROXY_URL=http://127.0.0.1:1")
	for i := range 3 {
		w.endpoint(fmt.Sprintf("http://127.0.0.1:%d/", 1000+i))
	}
	w.run()
	for range 20 {
		w.insert("payment.succeeded")
	}
	w.eventually("some are parked", `SELECT count(*) > 0 FROM webhook_deliveries`)
	if err := w.stop(); err != nil {
		t.Errorf("run returned %v", err)
	}
	if n := query[int](w, `SELECT count(*) FROM webhook_deliveries WHERE attempts > 0`); n != 0 {
		t.Errorf("%d have attempts", n)
	}
}
