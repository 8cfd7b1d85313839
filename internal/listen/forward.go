package listen

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/walhook/walhook/internal/terminal"
)

// A forward passes requests on to an application.
type forward struct {
	url    *url.URL
	client *http.Client
}

// newForward returns nil for no URL. No proxy, no redirects, no compression of its own: the
// application gets what came, and its own answer goes back.
func newForward(to *url.URL) *forward {
	if to == nil {
		return nil
	}
	return &forward{url: to, client: &http.Client{
		Transport:     &http.Transport{DisableCompression: true, MaxResponseHeaderBytes: maxHeader, IdleConnTimeout: idleFor},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// pass sends a request on, and returns the application's answer. Without one that is 502.
func (f *forward) pass(ctx context.Context, in *request) answer {
	begun := time.Now()
	a, err := f.ask(ctx, in)
	took := time.Since(begun).Round(time.Millisecond).String()
	if err != nil {
		return answer{
			status: http.StatusBadGateway, body: []byte("walhook listen: the application did not answer\n"),
			why: terminal.Site(f.url.String()) + " did not answer in " + took + ": " + terminal.Printable(reason(err)),
		}
	}
	a.why = terminal.Site(f.url.String()) + " said so in " + took
	if len(a.body) > maxBody {
		a.body = a.body[:maxBody]
		a.why += ", and more than is passed on"
	}
	return a
}

func (f *forward) ask(ctx context.Context, in *request) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, forwardWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, in.Method, f.target(in.URL), bytes.NewReader(in.body))
	if err != nil {
		return answer{}, err
	}
	req.Header = endToEnd(in.Header)
	if req.Header.Get("User-Agent") == "" {
		req.Header["User-Agent"] = nil // so that net/http adds none
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode < http.StatusOK {
		return answer{}, errors.New("it switched protocols")
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return answer{}, err
	}
	return answer{status: resp.StatusCode, header: endToEnd(resp.Header), body: body}, nil
}

// target is the URL as given, if it has a path. Otherwise the request's path and query follow it.
func (f *forward) target(asked *url.URL) string {
	to := *f.url
	if to.Path == "" || to.Path == "/" {
		to.Path, to.RawPath = asked.Path, asked.RawPath
		if to.RawQuery == "" {
			to.RawQuery = asked.RawQuery
		}
	}
	return to.String()
}

// hopByHop are the headers of one connection (RFC 9110, section 7.6.1), and those that net/http
// sets for the next one.
var hopByHop = []string{
	"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
	"Content-Length", "Expect",
}

// endToEnd returns the headers that are passed on.
func endToEnd(h http.Header) http.Header {
	drop := slices.Clone(hopByHop)
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			drop = append(drop, http.CanonicalHeaderKey(strings.TrimSpace(name)))
		}
	}
	out := h.Clone()
	for _, name := range drop {
		delete(out, name)
	}
	return out
}

// reason leaves out the URL, which may have a credential.
func reason(err error) string {
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err
	}
	return err.Error()
}
