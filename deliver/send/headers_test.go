package send

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/walhook/walhook/internal/postgres/pgtest"
)

// Headers refused at INSERT and headers left out of requests are one list.
func TestReservedHeadersAreTheDatabases(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	names := []string{
		"Accept", "Accept-Encoding", "Alt-Svc", "Authorization", "Cache-Control", "Close", "Connection", "Content-Disposition", "Content-Encoding",
		"Content-Language", "Content-Length", "Content-Location", "Content-MD5", "Content-Range", "Content-Type", "Cookie", "Date", "Digest", "Expect",
		"Forwarded", "From", "HTTP2-Settings", "Host", "Idempotency-Key", "If-Match", "If-None-Match", "Keep-Alive", "Link", "Max-Forwards", "Origin", "Pragma",
		"Proxy", "Proxy-Authenticate", "Proxy-Authentication-Info", "Proxy-Authorization", "Proxy-Connection", "Proxy-Features", "Proxy-Instruction",
		"Range", "Referer", "Signature", "Signature-Input", "TE", "Trailer", "Trailers", "Transfer-Encoding", "Upgrade", "Upgrade-Insecure-Requests",
		"User-Agent", "Via", "Warning", "X-Api-Key", "X-Forwarded-For", "X-Webhook", "X-Webhook-Delivery-ID", "X-Webhook-Event", "X-Webhook-Retry",
		"X-Webhook-Secret", "X-Webhook-Signature", "X-Webhooks", "webhook", "webhook-id", "webhook-signature", "webhook-timestamp", "webhook-", "webhooks-id",
		"Idem", "III", "a", "_", "x!#$%&'*+-.^`|~", "", " ", "a b", "a:b", "a\r\nb", "\u0130f", "\u017faccept", "Hos\u0442",
	}
	reserved, free := 0, 0
	for _, name := range names {
		for _, spelled := range []string{name, strings.ToLower(name), strings.ToUpper(name)} {
			headers, err := json.Marshal(map[string]string{spelled: "x"})
			if err != nil {
				t.Fatal(err)
			}
			var problem *string
			if err := db.Pool.QueryRow(t.Context(), `SELECT webhook_headers_problem($1::text::jsonb)`, string(headers)).Scan(&problem); err != nil {
				t.Fatalf("%q: %v", spelled, err)
			}
			sent := len(customHeaders(map[string]string{spelled: "x"})) == 1
			if sent != (problem == nil) {
				text := "nothing"
				if problem != nil {
					text = *problem
				}
				t.Errorf("%q: sent %t, and the database objects: %s", spelled, sent, text)
			}
			if sent {
				free++
			} else {
				reserved++
			}
		}
	}
	if reserved < 90 || free < 90 {
		t.Errorf("%d reserved, %d free: the names do not tell", reserved, free)
	}
}

// In Turkish, I in lower case is not i.
func TestReservedHeadersInAnyLocale(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	for _, locale := range []string{"tr-x-icu", "tr_TR", "C"} {
		var known bool
		if err := db.Pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_collation WHERE collname = $1)`, locale).Scan(&known); err != nil || !known {
			continue // not every server is built with ICU
		}
		for _, name := range []string{"TRAILER", "TRANSFER-ENCODING", "HTTP2-SETTINGS", "KEEP-ALIVE", "WEBHOOK-ID", "PROXY-AUTHORIZATION", "CONNECTION"} {
			var problem *string
			if err := db.Pool.QueryRow(t.Context(), `SELECT webhook_headers_problem(jsonb_build_object($1::text COLLATE "`+locale+`", 'x'))`, name).Scan(&problem); err != nil || problem == nil {
				t.Errorf("%s in %s: %v %v", name, locale, problem, err)
			}
		}
	}
}
