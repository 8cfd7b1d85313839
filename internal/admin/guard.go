package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// A guard lets through who may ask. With tokens that is who presents one. Without any, the
// server listens on loopback, and what has to be kept out is web pages that the operator's own
// browser shows: a page of another origin may not POST, and a name that was rebound to
// 127.0.0.1 may not read. A browser sends the password of Basic by itself, so other origins
// are kept out with a token too.
type guard struct {
	tokens  []string
	log     *slog.Logger
	refused throttle
}

// everybody is who may ask for health. With tokens, probes call the server by names that
// only their operators know, and a class is all that they are told.
func (g *guard) everybody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(g.tokens) == 0 && !toLoopback(r.Host) {
			g.refuse(w, r, http.StatusForbidden, "without WALHOOK_ADMIN_TOKEN only requests to localhost or a loopback address are answered")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// operators is who may see and do everything.
func (g *guard) operators(next http.Handler) http.Handler {
	origins := http.NewCrossOriginProtection()
	origins.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.refuse(w, r, http.StatusForbidden, "a web page of another origin cannot ask this")
	}))
	next = origins.Handler(g.logged(next))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(g.tokens) > 0 && !g.presented(r) {
			w.Header().Add("WWW-Authenticate", `Basic realm="walhook", charset="UTF-8"`) // first: a browser asks for the password
			w.Header().Add("WWW-Authenticate", `Bearer realm="walhook"`)
			g.refuse(w, r, http.StatusUnauthorized, "this needs WALHOOK_ADMIN_TOKEN, as Authorization: Bearer or as the password of Basic")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// refuse answers, and logs it unless it has just logged another refusal.
func (g *guard) refuse(w http.ResponseWriter, r *http.Request, status int, why string) {
	if others, say := g.refused.turn(); say {
		g.log.WarnContext(r.Context(), "admin server: refused a request", "remote", r.RemoteAddr, "method", r.Method, "status", status, "reason", why, "others_since", others)
	}
	refuse(w, status, why)
}

// logged logs each request that is to change something: who, what, and what came of it.
func (g *guard) logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			next.ServeHTTP(w, r)
			return
		}
		answer := &answered{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(answer, r)
		g.log.InfoContext(r.Context(), "admin server: answered a POST", "remote", r.RemoteAddr, "path", r.URL.Path, "status", answer.status)
	})
}

// An answered remembers the status.
type answered struct {
	http.ResponseWriter
	status int
}

// WriteHeader is http.ResponseWriter's.
func (a *answered) WriteHeader(status int) {
	a.status = status
	a.ResponseWriter.WriteHeader(status)
}

// presented says whether a request has a token: of Bearer, or as the password of Basic. The
// user is not looked at: there are no users.
func (g *guard) presented(r *http.Request) bool {
	if _, password, ok := r.BasicAuth(); ok {
		return isToken(password, g.tokens)
	}
	scheme, got, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.EqualFold(scheme, "Bearer") && isToken(strings.TrimSpace(got), g.tokens)
}

// isToken compares hashes, which have one length, in constant time.
func isToken(got string, tokens []string) bool {
	g, found := sha256.Sum256([]byte(got)), 0
	for _, token := range tokens {
		t := sha256.Sum256([]byte(token))
		found |= subtle.ConstantTimeCompare(g[:], t[:])
	}
	return found == 1
}

// toLoopback reports whether a Host header names this machine in a way that no
// DNS server can make up. Without one it is a probe of HTTP/1.0: every browser names a host.
func toLoopback(hostport string) bool {
	if hostport == "" {
		return true
	}
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	if addr, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return addr.Unmap().IsLoopback()
	}
	return strings.EqualFold(host, "localhost")
}
