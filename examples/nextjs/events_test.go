package nextjs

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/walhook/walhook/internal/postgres/pgtest"
)

const eventsFile = "lib/webhooks/events.ts"

var update = flag.Bool("update", false, "write "+eventsFile+" from the event types of schema.sql")

// The names and payloads that applications write in TypeScript are those of schema.sql.
func TestEventsAreThoseOfTheSchema(t *testing.T) {
	t.Parallel()
	want := eventsOf(t, pgtest.New(t))
	if *update {
		if err := os.WriteFile(eventsFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(eventsFile); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not what schema.sql says (%v): go test ./examples/nextjs -run Events -update", eventsFile, err)
	}
}

const selectTypes = `
SELECT name, description, example::text FROM webhook_event_types WHERE category <> 'webhook'
ORDER BY array_position('{organization,payment,subscription,api_key,security}', category), name`

// eventsOf writes the event types of a new installation as TypeScript.
func eventsOf(t *testing.T, db *pgtest.DB) []byte {
	t.Helper()
	rows, err := db.Pool.Query(t.Context(), selectTypes)
	if err != nil {
		t.Fatal(err)
	}
	var names, payloads bytes.Buffer
	n := 0
	var name, description, example string
	if _, err := pgx.ForEachRow(rows, []any{&name, &description, &example}, func() error {
		n++
		constant := strings.ToUpper(strings.ReplaceAll(name, ".", "_"))
		fmt.Fprintf(&names, "  %s: '%s',\n", constant, name)
		decoder := json.NewDecoder(strings.NewReader(example))
		fmt.Fprintf(&payloads, "  /** %s */\n  '%s': %s\n", description, name, typeOf(t, decoder, "  "))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if n != 22 {
		t.Errorf("%d event types, want 22", n)
	}
	return fmt.Appendf(nil, `// The event types of walhook, and their payloads as the examples in webhook_event_types have them. Add the types of your own.

export const WEBHOOK_EVENTS = {
%s} as const

export type WebhookEvent = (typeof WEBHOOK_EVENTS)[keyof typeof WEBHOOK_EVENTS]

export interface WebhookPayloads {
%s}

/** A webhook as receivers get it. event says which data it has. */
export type Webhook = {
  [E in WebhookEvent]: { id: string; event: E; data: WebhookPayloads[E]; organizationId: string; timestamp: string }
}[WebhookEvent]
`, names.Bytes(), payloads.Bytes())
}

var identifier = regexp.MustCompile(`^[A-Za-z_$][\w$]*$`)

// typeOf returns the type of a value, its fields in their order.
func typeOf(t *testing.T, d *json.Decoder, indent string) string {
	t.Helper()
	token, err := d.Token()
	if err != nil {
		t.Fatal(err)
	}
	switch v := token.(type) {
	case json.Delim:
		var b strings.Builder
		if v == '[' {
			item := "unknown"
			for first := true; d.More(); first = false {
				if of := typeOf(t, d, indent); first {
					item = of
				} else if of != item {
					t.Fatalf("a list of %s and %s", item, of)
				}
			}
			b.WriteString(item + "[]")
		} else {
			b.WriteString("{\n")
			for d.More() {
				key, _ := d.Token()
				if !identifier.MatchString(key.(string)) {
					t.Fatalf("the field %q needs quotes", key)
				}
				fmt.Fprintf(&b, "%s  %s: %s\n", indent, key, typeOf(t, d, indent+"  "))
			}
			b.WriteString(indent + "}")
		}
		_, _ = d.Token() // its end
		return b.String()
	case string:
		return "string"
	case float64:
		return "number"
	case bool:
		return "boolean"
	default:
		return "string | null" // a time that may be missing, such as expiresAt
	}
}
