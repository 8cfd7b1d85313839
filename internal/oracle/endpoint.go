package oracle

import (
	"slices"
	"strings"

	"github.com/google/uuid"
)

// An Endpoint is a row of webhook_endpoints, and a path of the receiver.
type Endpoint struct {
	ID     uuid.UUID
	Org    string
	Types  []string // as in the table
	ForAll bool     // all_organizations
	Secret string
	URL    string // "": a path of the receiver
	Secure bool   // its URL says https, and the receiver does not
}

// Owed reports whether an event is owed to the endpoint. This is the oracle's own
// reading of the contract, independent of the trigger's.
func (e *Endpoint) Owed(org, eventType string) bool {
	category, _, _ := strings.Cut(eventType, ".")
	if e.ForAll {
		return category == "webhook" && (slices.Contains(e.Types, "*") || slices.Contains(e.Types, eventType) || slices.Contains(e.Types, "webhook.*"))
	}
	return e.Org == org && (slices.Contains(e.Types, eventType) || slices.Contains(e.Types, category+".*") ||
		slices.Contains(e.Types, "*") && category != "webhook")
}

// reached reports whether each attempt ends with a request at the receiver.
func (e *Endpoint) reached() bool { return e.URL == "" && !e.Secure }
