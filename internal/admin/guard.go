package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// guard lets through who has the token. Where there is none, the server listens
// on loopback, and what has to be kept out is web pages that the operator's own
// browser shows: a page of another origin may not POST, and a name that was
// rebound to 127.0.0.1 may not read.
func guard(token string, next http.Handler) http.Handler {
	origins := http.NewCrossOriginProtection()
	origins.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, http.StatusForbidden, "a web page of another origin cannot ask this")
	}))
	next = origins.Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case token != "" && !hasToken(r, token):
			w.Header().Set("WWW-Authenticate", "Bearer")
			refuse(w, http.StatusUnauthorized, "this needs the header Authorization: Bearer, with WALHOOK_ADMIN_TOKEN")
		case token == "" && !toLoopback(r.Host):
			refuse(w, http.StatusForbidden, "without WALHOOK_ADMIN_TOKEN only requests to localhost or a loopback address are answered")
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// hasToken compares hashes, which have one length, in constant time.
func hasToken(r *http.Request, token string) bool {
	scheme, got, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	g, w := sha256.Sum256([]byte(strings.TrimSpace(got))), sha256.Sum256([]byte(token))
	return strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare(g[:], w[:]) == 1
}

// toLoopback reports whether a Host header names this machine in a way that no
// DNS server can make up.
func toLoopback(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	if addr, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return addr.Unmap().IsLoopback()
	}
	return strings.EqualFold(host, "localhost")
}
