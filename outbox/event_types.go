package outbox

import "strings"

// An EventType is a row of webhook_event_types as schema.sql seeds it.
type EventType struct {
	Name     string
	Category string
}

// OwnCategory is the category of walhook's own events. Only endpoints that name them get
// them: '*' does not match them.
const OwnCategory = "webhook"

// walhook's own event types.
const (
	TypeTest              = "webhook.test"
	TypeEndpointDisabled  = "webhook.endpoint.disabled"
	TypeEndpointFailing   = "webhook.endpoint.failing"
	TypeEndpointRecovered = "webhook.endpoint.recovered"
	TypeDeliveryExhausted = "webhook.delivery.exhausted"
)

// EventTypes are the 22 types that every deployment starts with. A deployment adds its
// own by INSERT into webhook_event_types.
var EventTypes = []EventType{
	{"org.created", "organization"},
	{"org.updated", "organization"},
	{"org.deleted", "organization"},
	{"org.member.invited", "organization"},
	{"org.member.added", "organization"},
	{"org.member.removed", "organization"},
	{"org.member.role_changed", "organization"},
	{"payment.succeeded", "payment"},
	{"payment.failed", "payment"},
	{"payment.refunded", "payment"},
	{"subscription.created", "subscription"},
	{"subscription.updated", "subscription"},
	{"subscription.cancelled", "subscription"},
	{"subscription.expired", "subscription"},
	{"subscription.renewed", "subscription"},
	{"api_key.created", "api_key"},
	{"api_key.revoked", "api_key"},
	{"api_key.rotated", "api_key"},
	{"security.2fa_enabled", "security"},
	{"security.2fa_disabled", "security"},
	{"security.password_changed", "security"},
	{"security.login_failed", "security"},
}

// IsOwnType reports whether an event type belongs to walhook itself.
func IsOwnType(name string) bool { return strings.HasPrefix(name, OwnCategory+".") }
