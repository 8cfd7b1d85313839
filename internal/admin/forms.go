package admin

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/store"
)

// forms is a key of this process alone. Each form holds a token for what it does to what: another
// origin's page, which the guard keeps out already, could not make one up.
type forms []byte

func newForms() forms {
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // it never fails
	return key
}

// token returns what a form for an action, which is a path, has to hold.
func (f forms) token(action string) string {
	mac := hmac.New(sha256.New, f)
	_, _ = mac.Write([]byte(action)) // it never fails
	return hex.EncodeToString(mac.Sum(nil))
}

// errNoChoice means that a form has a value that the page does not offer.
var errNoChoice = errors.New("take one of the list")

// An action is what a button does to the endpoint or the delivery of an id, with what else its form
// says. It returns the page to show then, with what to say in its query.
type action func(ctx context.Context, id uuid.UUID, form url.Values) (shown string, err error)

// button answers the POST of a form.
func (p *page) button(do action) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		no := func(status int, why string) { p.write(w, status, "refusal.html", refusal{p.view(r), why}) }
		if got, want := r.PostFormValue("token"), p.forms.token(r.URL.Path); !hmac.Equal([]byte(got), []byte(want)) {
			no(http.StatusForbidden, "The form is not one that this walhook has made; it may have been started again since. Go back, reload the page, and try again.")
			return
		}
		id, err := uuid.Parse(r.PathValue("id"))
		if err != nil {
			no(http.StatusNotFound, "That is no id: an id is a UUID.")
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), databasePatience)
		defer cancel()
		shown, err := do(ctx, id, r.PostForm)
		switch {
		case errors.Is(err, store.ErrNothingThere):
			no(http.StatusNotFound, "Nothing was changed: "+err.Error()+".")
		case errors.Is(err, errNoChoice):
			no(http.StatusBadRequest, "Nothing was changed: "+err.Error()+".")
		case err != nil:
			no(http.StatusServiceUnavailable, err.Error())
		default:
			http.Redirect(w, r, shown, http.StatusSeeOther)
		}
	})
}

// shown is an action's page: an endpoint's or a delivery's, which says what was done.
func shown(kind string, id uuid.UUID, what string, more ...string) string {
	q := url.Values{"done": {what}}
	for i := 0; i+1 < len(more); i += 2 {
		q.Set(more[i], more[i+1])
	}
	return "/" + kind + "/" + id.String() + "?" + q.Encode()
}

func (p *page) retryNow(ctx context.Context, id uuid.UUID, _ url.Values) (string, error) {
	waiting, err := p.db.retryNow(ctx, id)
	return shown("endpoints", id, "retry", "n", strconv.FormatInt(waiting, 10)), err
}

func (p *page) replay(ctx context.Context, id uuid.UUID, _ url.Values) (string, error) {
	return shown("deliveries", id, "replay"), p.db.replay(ctx, id)
}

// sincesOf are from when on an endpoint's failed deliveries may be replayed, as PostgreSQL's
// intervals. The first is the usual one.
var sincesOf = []string{"1 day", "1 hour", "7 days", "30 days"}

func (p *page) replayFailed(ctx context.Context, id uuid.UUID, form url.Values) (string, error) {
	since := form.Get("since")
	if !slices.Contains(sincesOf, since) {
		return "", fmt.Errorf("%w: %q is none of %s", errNoChoice, since, strings.Join(sincesOf, ", "))
	}
	replayed, err := p.db.replayFailed(ctx, id, since)
	return shown("endpoints", id, "replayed", "n", strconv.FormatInt(replayed, 10)), err
}

func (p *page) enable(ctx context.Context, id uuid.UUID, _ url.Values) (string, error) {
	return shown("endpoints", id, "enable"), p.db.enable(ctx, id)
}

func (p *page) test(ctx context.Context, id uuid.UUID, _ url.Values) (string, error) {
	delivery, err := p.db.sendTestTo(ctx, id)
	return shown("endpoints", id, "test", "delivery", delivery.String()), err
}

func (p *page) pause(ctx context.Context, id uuid.UUID, _ url.Values) (string, error) {
	return shown("endpoints", id, "pause"), p.db.pause(ctx, id)
}

func (p *page) resume(ctx context.Context, id uuid.UUID, _ url.Values) (string, error) {
	return shown("endpoints", id, "resume"), p.db.resume(ctx, id)
}

// done says what a button did, of what stands in the query. Whoever makes up a query cannot have
// it say anything else.
func done(q url.Values) string {
	switch q.Get("done") {
	case "retry":
		if n, err := strconv.ParseInt(q.Get("n"), 10, 64); err == nil && n >= 0 {
			return "Everything that waits for this endpoint is due now: " + number(n, "delivery", "deliveries") + "."
		}
	case "replayed":
		if n, err := strconv.ParseInt(q.Get("n"), 10, 64); err == nil && n >= 0 {
			return "Sent again: " + number(n, "delivery", "deliveries") + "."
		}
	case "enable":
		return "This endpoint is enabled. Events that were inserted while it was disabled are not owed to it; what was cancelled then can be replayed."
	case "pause":
		return "This endpoint is paused: what is owed to it waits, and nothing is sent until it is resumed."
	case "resume":
		return "This endpoint gets what it is owed again."
	case "replay":
		return "This delivery is sent again."
	case "test":
		if id, err := uuid.Parse(q.Get("delivery")); err == nil {
			return "A test event is on its way, as delivery " + id.String() + "."
		}
	}
	return ""
}
