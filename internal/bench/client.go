//go:build linux

package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime/pprof"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/deliver/send"
	"github.com/walhook/walhook/sign"
)

// A poster sends the requests of the bare client and of the pollers: walhook's headers
// and both signatures, by net/http as it is.
type poster struct {
	client *http.Client
	url    string
	signer *sign.Signer
}

func newPoster(j job) (*poster, error) {
	signer, err := sign.New(j.Secret)
	if err != nil {
		return nil, err
	}
	trust, err := trustOf(j)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{DisableCompression: true, MaxIdleConns: inFlight, MaxIdleConnsPerHost: inFlight, TLSClientConfig: trust}
	return &poster{client: &http.Client{Transport: transport}, url: j.URL, signer: signer}, nil
}

// trustOf trusts the receiver's certificate.
func trustOf(j job) (*tls.Config, error) {
	trust := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	if j.Certificate == "" {
		return trust, nil
	}
	certificate, err := os.ReadFile(j.Certificate)
	trust.RootCAs.AppendCertsFromPEM(certificate)
	return trust, err
}

// headers are walhook's.
func headers(signer *sign.Signer, id uuid.UUID, body []byte) [9][2]string {
	text, at := id.String(), time.Now().Unix()
	return [...][2]string{
		{"Content-Type", "application/json"},
		{"User-Agent", "bench"},
		{"X-Webhook-Event", eventType},
		{"X-Webhook-Delivery-Id", text},
		{"X-Webhook-Retry", "0"},
		{sign.HeaderBodySignature, signer.Body(body)},
		{sign.HeaderID, text},
		{sign.HeaderTimestamp, strconv.FormatInt(at, 10)},
		{sign.HeaderSignature, signer.Standard(text, at, body)},
	}
}

func (p *poster) post(id uuid.UUID, body []byte) error {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, p.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	for _, h := range headers(p.signer, id, body) {
		req.Header[h[0]] = []string{h[1]}
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return err
	}
	return accepted(resp)
}

// accepted reads a response to its end, and returns an error unless it says 200.
func accepted(resp *http.Response) error {
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the receiver answered %s", resp.Status)
	}
	return nil
}

// together calls f for 0 to n-1, with bounded concurrency, and returns the last error.
func together(n, atOnce int, f func(int) error) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	for range min(n, atOnce) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := f(i); err != nil {
					failed.Store(&err)
				}
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

// post is the bare client's process: it sends n bodies from memory and records nothing.
func post(j job, ready func(string) error) error {
	p, err := newPoster(j)
	if err != nil {
		return err
	}
	ids, bodies := requests(j)
	return timed(j, ready, func() error {
		return together(j.N, inFlight, func(i int) error { return p.post(ids[i], bodies[i]) })
	})
}

// requests are the ids and bodies of a child's requests.
func requests(j job) ([]uuid.UUID, [][]byte) {
	ids, bodies := make([]uuid.UUID, j.N), make([][]byte, j.N)
	for i := range bodies {
		e := event(i, cmp.Or(j.Size, payloadBytes))
		ids[i], bodies[i] = e.ID, send.Body(e)
	}
	return ids, bodies
}

// timed does a child's work and reports its duration and CPU time.
func timed(j job, ready func(string) error, work func() error) error {
	if err := ready("ready"); err != nil {
		return err
	}
	if j.Profile != "" {
		file, err := os.Create(j.Profile)
		if err != nil {
			return err
		}
		defer file.Close()
		if err := pprof.StartCPUProfile(file); err != nil {
			return err
		}
	}
	began, cpu := now(), ownCPU()
	err := work()
	o := outcome{N: j.N, Took: now() - began, CPU: ownCPU() - cpu}
	pprof.StopCPUProfile()
	if err != nil {
		o.Err = err.Error()
	}
	return tell(o)
}

// clientSecret is as long as the secrets that walhook generates.
const clientSecret = "whsec_YmVuY2ggYmVuY2ggYmVuY2ggYmVuY2ggYmVuY2g="
