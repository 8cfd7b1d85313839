package send

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkSend compares a Sender with a bare net/http client that makes a minimal signed
// POST to the same receiver.
func BenchmarkSend(b *testing.B) {
	e := testEvent()
	e.Payload = []byte(`{"text": "` + strings.Repeat("x", 1000) + `"}`)
	body := Body(e)
	for _, scheme := range []string{"http", "https"} {
		address, trusted := benchReceiver(b, scheme)
		b.Run(scheme+"/walhook", func(b *testing.B) {
			s := testSender(b, func(c *SenderConfig) { c.RootCAs = trusted })
			r := testRequest(s, address)
			r.Body = body
			atOnce(b, func(ctx context.Context) {
				if a, _ := s.Send(ctx, r); Judge(a) != Delivered {
					b.Errorf("Send = %+v", a)
				}
			})
		})
		b.Run(scheme+"/bare", func(b *testing.B) {
			transport := &http.Transport{MaxIdleConnsPerHost: 1024, MaxIdleConns: 1024, TLSClientConfig: &tls.Config{RootCAs: trusted}}
			defer transport.CloseIdleConnections()
			client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
			atOnce(b, func(ctx context.Context) {
				if err := bareSend(ctx, client, address, body); err != nil {
					b.Error(err)
				}
			})
		})
	}
}

// atOnce calls send with 16 goroutines for each processor, from one context that can be
// cancelled, as the engine does.
func atOnce(b *testing.B, send func(context.Context)) {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	b.SetParallelism(16)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			send(ctx)
		}
	})
}

// benchReceiver returns the URL of a receiver that costs little, and who vouches for its
// certificate.
func benchReceiver(b *testing.B, scheme string) (address string, trusted *x509.CertPool) {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	if scheme == "https" {
		own := httptest.NewTLSServer(nil)
		own.Close()
		trusted = x509.NewCertPool()
		trusted.AddCert(own.Certificate())
		l = tls.NewListener(l, &tls.Config{Certificates: own.TLS.Certificates})
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go receive(conn)
		}
	}()
	return scheme + "://" + l.Addr().String() + "/hook", trusted
}

// receive answers requests until the connection breaks.
func receive(conn net.Conn) {
	defer conn.Close()
	br := bufio.NewReader(conn)
	for {
		length := 0
		for {
			line, err := br.ReadSlice('\n')
			if err != nil {
				return
			}
			if len(line) <= 2 {
				break
			}
			if v, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
				length, _ = strconv.Atoi(string(bytes.TrimSpace(v)))
			}
		}
		if _, err := br.Discard(length); err != nil {
			return
		}
		if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"); err != nil {
			return
		}
	}
}

func bareSend(ctx context.Context, client *http.Client, address string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return err
	}
	mac := hmac.New(sha256.New, []byte(testSecret))
	mac.Write(body)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Webhook-Signature", hex.EncodeToString(mac.Sum(nil)))
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
