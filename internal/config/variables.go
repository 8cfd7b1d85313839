package config

import "slices"

// A Variable is a row of the table in docs/configuration.md, which a test
// compares with this one.
type Variable struct {
	Name    string
	Default string // as it would be written into the environment; "": none
	Shown   string // the default as docs/configuration.md shows it, where it is no plain value
	Meaning string // for people, in Markdown
	Example string // a value that would do
	Secret  bool   // never printed; can be given as NAME_FILE
	Empty   bool   // an empty value means something else than none at all
}

// Variables is every variable of the environment that walhook reads, beside
// DATABASE_URL and libpq's PG*.
var Variables = []Variable{
	{
		Name: "WALHOOK_DATABASE_URL", Shown: "`DATABASE_URL`, then libpq's `PG*`", Secret: true,
		Meaning: "SQL connections", Example: "postgres://walhook@db.internal:5432/app",
	},
	{
		Name: "WALHOOK_REPLICATION_URL", Shown: "the above", Secret: true,
		Meaning: "the replication connection; needed if SQL goes through a pooler", Example: "postgres://walhook@db.internal:5432/app",
	},
	{
		Name: "WALHOOK_SLOT", Default: "walhook",
		Meaning: "replication slot", Example: "walhook",
	},
	{
		Name: "WALHOOK_SCHEMA", Shown: "the first schema of the `search_path`",
		Meaning: "schema of walhook's tables; created if it does not exist. Every session is pinned to it, and sees no other schema", Example: "webhooks",
	},
	{
		Name: "WALHOOK_AUTO_INIT", Default: "true",
		Meaning: "`run` creates the schema, publication and slot; `false`: it only checks, and exits 3 if something is missing", Example: "true",
	},
	{
		Name: "WALHOOK_ADMIN_ADDR", Default: "127.0.0.1:8080", Empty: true,
		Meaning: "health, metrics, test webhook, status page; empty: off", Example: "127.0.0.1:8080",
	},
	{
		Name: "WALHOOK_ADMIN_TOKEN", Shown: "none", Secret: true,
		Meaning: "token of at least 16 characters for everything but health, as `Bearer` or as the password of Basic; two, with a comma, during a change; required off loopback", Example: "what openssl rand -hex 32 prints",
	},
	{
		Name: "WALHOOK_ADMIN_TLS_CERT_FILE", Shown: "none",
		Meaning: "PEM: certificate of the admin server, which then speaks TLS. Read again when it is renewed", Example: "/etc/walhook/tls.crt",
	},
	{
		Name: "WALHOOK_ADMIN_TLS_KEY_FILE", Shown: "none",
		Meaning: "PEM: the key of that certificate; both or none", Example: "/etc/walhook/tls.key",
	},
	{
		Name: "WALHOOK_PARK_AFTER", Default: "500ms",
		Meaning: "a delivery without an outcome after this time becomes a `pending` row; `0`: every delivery does, before its first attempt", Example: "500ms",
	},
	{
		Name: "WALHOOK_MAX_IN_FLIGHT", Default: "1024",
		Meaning: "concurrent attempts", Example: "1024",
	},
	{
		Name: "WALHOOK_WINDOW", Default: "8192",
		Meaning: "deliveries in memory", Example: "8192",
	},
	{
		Name: "WALHOOK_MAX_MEMORY", Default: "64MiB",
		Meaning: "payload bytes in memory", Example: "64MiB",
	},
	{
		Name: "WALHOOK_ENDPOINT_IN_FLIGHT", Default: "32",
		Meaning: "concurrent attempts of one endpoint; a column overrides it", Example: "32",
	},
	{
		Name: "WALHOOK_TIMEOUT", Default: "10s",
		Meaning: "limit for one whole attempt", Example: "10s",
	},
	{
		Name: "WALHOOK_RETRY_SCHEDULE", Default: "5s,5m,30m,2h,5h,10h,14h,20h,24h", Empty: true,
		Meaning: "waits from the end of an attempt to the next; jitter only makes them longer, by at most 20 %; empty: one attempt, no retry",
		Example: "5s,5m,30m,2h",
	},
	{
		Name: "WALHOOK_DISABLE_AFTER", Default: "120h",
		Meaning: "an endpoint with nothing but failures for this long is disabled; `0`: never", Example: "120h",
	},
	{
		Name: "WALHOOK_USER_AGENT", Default: "Fabrk-Webhooks/1.0",
		Meaning: "`User-Agent` of the requests", Example: "Fabrk-Webhooks/1.0",
	},
	{
		Name: "WALHOOK_ALLOW_HTTP", Default: "false",
		Meaning: "allow `http://` endpoints", Example: "true",
	},
	{
		Name: "WALHOOK_ALLOW_PORTS", Default: "80,443", Empty: true,
		Meaning: "ports allowed on the public internet; empty: none", Example: "80,443,8443",
	},
	{
		Name: "WALHOOK_ALLOW_NETS", Shown: "none",
		Meaning: "CIDRs allowed beyond the public internet, on any port", Example: "10.0.0.0/8,192.0.2.7",
	},
	{
		Name: "WALHOOK_DENY_NETS", Shown: "none",
		Meaning: "CIDRs that are never dialled; wins over `WALHOOK_ALLOW_NETS`. The database's addresses and the admin listener are always denied", Example: "10.0.5.0/24,192.0.2.7",
	},
	{
		Name: "WALHOOK_CA_FILE", Shown: "none",
		Meaning: "PEM: certificate authorities trusted beside the system's", Example: "/etc/ssl/internal-ca.pem",
	},
	{
		Name: "WALHOOK_PROXY_URL", Shown: "none", Secret: true,
		Meaning: "egress proxy (`http`, `https` or `socks5`); the environment's `HTTP_PROXY` is ignored", Example: "http://proxy.internal:3128",
	},
	{
		Name: "WALHOOK_SECRET_KEY", Shown: "none", Secret: true,
		Meaning: "32 bytes, base64: seals signing secrets and endpoints' headers in the tables", Example: "what openssl rand -base64 32 prints",
	},
	{
		Name: "WALHOOK_SECRET_KEY_OLD", Shown: "none", Secret: true,
		Meaning: "the former key, during a change: walhook opens with it what it sealed, and seals it anew with `WALHOOK_SECRET_KEY`. A start whose keys open none of the sealed secrets exits 2",
		Example: "the key that was WALHOOK_SECRET_KEY before",
	},
	{
		Name: "WALHOOK_MAX_ENDPOINTS", Default: "1000",
		Meaning: "how many endpoints an organization can have, checked at INSERT. The last `run` or `init` stores it in the database; what is there already stays", Example: "5000",
	},
	{
		Name: "WALHOOK_RETENTION", Default: "720h",
		Meaning: "how long finished events and deliveries are kept", Example: "720h",
	},
	{
		Name: "WALHOOK_RECOVERY_WINDOW", Default: "72h",
		Meaning: "how far back a first start or a lost slot looks for events that are still owed", Example: "72h",
	},
	{
		Name: "WALHOOK_ENVIRONMENT", Shown: "none",
		Meaning: "the first `run` or `init` that has one stores it in the database; with any other value, or none, walhook then exits 4 " +
			"(a restored copy must not call customers) until `walhook init --adopt`",
		Example: "production",
	},
	{
		Name: "WALHOOK_LOG_LEVEL", Default: "info",
		Meaning: "`debug`, `info`, `warn` or `error`", Example: "info",
	},
	{
		Name: "WALHOOK_LOG_FORMAT", Default: "json",
		Meaning: "`json`, or `text` for people", Example: "json",
	},
}

// variable returns the row of a name, and whether there is one.
func variable(name string) (Variable, bool) {
	i := slices.IndexFunc(Variables, func(v Variable) bool { return v.Name == name })
	if i < 0 {
		return Variable{}, false
	}
	return Variables[i], true
}
