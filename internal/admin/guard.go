package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// guard lets through who has a token. Where there is none, the server listens
// on loopback, and what has to be kept out is web pages that the operator's own
// browser shows: a page of another origin may not POST, and a name that was
// rebound to 127.0.0.1 may not read. A browser sends the password of Basic by
// itself, so other origins are kept out with a token too.
func guard(tokens []string, next http.Handler) http.Handler {
	origins := http.NewCrossOriginProtection()
	origins.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, http.StatusForbidden, "a web page of another origin cannot ask this")
	}))
	next = origins.Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case trusted(r, tokens):
			next.ServeHTTP(w, r)
		case len(tokens) > 0:
			w.Header().Add("WWW-Authenticate", `Basic realm="walhook", charset="UTF-8"`) // first: a browser asks for the password
			w.Header().Add("WWW-Authenticate", `Bearer realm="walhook"`)
			refuse(w, http.StatusUnauthorized, "this needs WALHOOK_ADMIN_TOKEN, as Authorization: Bearer or as the password of Basic")
		default:
			refuse(w, http.StatusForbidden, "without WALHOOK_ADMIN_TOKEN only requests to localhost or a loopback address are answered")
		}
	})
}

// trusted says whether a request comes from who may see everything.
func trusted(r *http.Request, tokens []string) bool {
	if len(tokens) == 0 {
		return toLoopback(r.Host)
	}
	return slices.ContainsFunc(presented(r), func(got string) bool { return isToken(got, tokens) })
}

// presented is the token of a request: of Bearer, or as the password of Basic. The user
// is not looked at: there are no users.
func presented(r *http.Request) []string {
	if _, password, ok := r.BasicAuth(); ok {
		return []string{password}
	}
	scheme, got, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") {
		return []string{strings.TrimSpace(got)}
	}
	return nil
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
