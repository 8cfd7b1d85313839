package store_test

import (
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/postgres/pgtest"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
)

// A delivery that waits for its first attempt is not due before it was made: its next_attempt_at is,
// so that it goes before retries.
func TestAFirstAttemptIsDueSinceItsDeliveryWasMade(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st := store.New(db.Pool, "walhook", 0)
	id := query[uuid.UUID](t, db.Pool, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, next_attempt_at)
		VALUES (webhook_uuidv7(), webhook_uuidv7(), gen_random_uuid(), 'org_1', 'payment.failed', 'pending', now() - interval '10 minutes') RETURNING id`)
	d, err := st.Delivery(t.Context(), id)
	if err != nil || !d.NextAt.Equal(d.CreatedAt) {
		t.Errorf("made at %v, it is due at %v, %v", d.CreatedAt, d.NextAt, err)
	}
}

// next_attempt_at keeps its last value when a delivery ends, and means nothing any more.
func TestOnlyUnfinishedDeliveriesHaveANextAttempt(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	st := store.New(db.Pool, "walhook", 0)
	for status, want := range map[string]bool{"pending": true, "retrying": true, "success": false, "failed": false, "cancelled": false} {
		id := query[uuid.UUID](t, db.Pool, `INSERT INTO webhook_deliveries (id, event_id, endpoint_id, organization_id, event_type, status, next_attempt_at)
			VALUES (webhook_uuidv7(), webhook_uuidv7(), gen_random_uuid(), 'org_1', 'payment.failed', $1, now() + interval '1 hour') RETURNING id`, status)
		if d, err := st.Delivery(t.Context(), id); err != nil || (d.NextAt != nil) != want {
			t.Errorf("%s: the next attempt is at %v, %v", status, d.NextAt, err)
		}
		page, err := st.Deliveries(t.Context(), store.DeliveryFilter{Statuses: []string{status}})
		if err != nil || len(page.Deliveries) != 1 || (page.Deliveries[0].NextAt != nil) != want {
			t.Errorf("%s, in a list: %+v, %v", status, page.Deliveries, err)
		}
	}
}

// Scheme, host and port of a URL are the same in Go and in SQL, and never more than that.
func TestSite(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	for url, want := range map[string]string{
		"https://example.com":              "https://example.com",
		"HTTPS://Example.com:8443/hook":    "HTTPS://Example.com:8443",
		"http://[::1]:80/":                 "http://[::1]:80",
		"https://u:hunter2@example.com/":   "https://example.com",
		"https://a@hunter2@example.com?k":  "https://example.com",
		"https://example.com/@hunter2":     "https://example.com",
		"https://example.com?k=a@hunter2":  "https://example.com",
		"https://example.com#a://hunter2":  "https://example.com",
		"https://example.com\\@hunter2":    "https://hunter2",
		"https://exa mple.com/hunter2":     "https://exa mple.com",
		"https://%zz/hunter2":              "https://%zz",
		"https://example.com:port/hunter2": "https://example.com:port",
		"https://\u202egnp.example/a":      "https://\u202egnp.example",
		"https://example.com\n/hunter2":    "https://example.com\n",
		"https://u:p@/hunter2":             "(no URL)",
		"https:///hunter2":                 "(no URL)",
		"https:hunter2":                    "(no URL)",
		"://hunter2":                       "(no URL)",
		"h2://hunter2":                     "(no URL)",
		"hunter2 https://example.com":      "(no URL)",
		"":                                 "(no URL)",
	} {
		if got := webhook.Site(url); got != want {
			t.Errorf("Site(%q) = %q, want %q", url, got, want)
		}
		for _, sql := range []string{"webhook_url_host(e.url)", store.SiteOfEndpoint} {
			got := query[string](t, db.Pool, `SELECT coalesce(`+sql+`, '') FROM (SELECT $1::text AS url) AS e`, url)
			if got == "" || strings.HasSuffix(got, "://") {
				got = "(no URL)"
			}
			if got != want {
				t.Errorf("%s of %q = %q, want %q", sql, url, got, want)
			}
		}
	}
}
