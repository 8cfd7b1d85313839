package webhook

import "strings"

// Site returns a URL's scheme, host and port: its path and query often hold credentials. It parses
// nothing, so that there is no URL of which it says more. webhook_url_host is the same in SQL.
func Site(url string) string {
	scheme, rest, found := strings.Cut(url, "://")
	host := rest
	if end := strings.IndexAny(host, "/?#"); end >= 0 {
		host = host[:end]
	}
	host = host[strings.LastIndexByte(host, '@')+1:]
	if !found || scheme == "" || strings.Trim(scheme, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" || host == "" {
		return "(no URL)"
	}
	return scheme + "://" + host
}
