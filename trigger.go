package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/terminal"
	"github.com/walhook/walhook/internal/webhook"
)

// runTrigger sends a test webhook through the outbox, and follows its deliveries to their end.
func runTrigger(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := newFlags("trigger")
	endpoint := flags.String("endpoint", "", "")
	wait := flags.Duration("wait", 30*time.Second, "")
	words, err := parseAnywhere(flags, args)
	if err != nil {
		return err
	}
	if *wait < 0 {
		return fmt.Errorf("%w: --wait %s is negative", errConfig, *wait)
	}
	what, err := testWebhook(words, *endpoint)
	if err != nil {
		return fmt.Errorf("%w: %w", errConfig, err)
	}
	return withStore(ctx, "trigger", nil, stderr, func(db *database) error {
		return trigger(ctx, db.store, what, *wait, stdout)
	})
}

// parseAnywhere parses flags before, between and after the other arguments, and returns these.
func parseAnywhere(flags *flag.FlagSet, args []string) (words []string, err error) {
	for {
		if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
			return nil, err
		} else if err != nil {
			return nil, fmt.Errorf("%w: %w; see `%s --help`", errConfig, err, flags.Name())
		}
		rest := flags.Args()
		parsed := len(args) - len(rest)
		if len(rest) == 0 || parsed > 0 && args[parsed-1] == "--" { // behind it nothing is a flag
			return append(words, rest...), nil
		}
		words, args = append(words, rest[0]), rest[1:]
	}
}

// testWebhook reads ORG TYPE [JSON] and --endpoint.
func testWebhook(words []string, endpoint string) (w store.TestWebhook, err error) {
	if len(words) < 2 || len(words) > 3 || words[0] == "" || words[1] == "" {
		return w, fmt.Errorf("walhook trigger wants an organization, an event type and, if you like, JSON; it got %d arguments: see `walhook trigger --help`", len(words))
	}
	w.OrganizationID, w.EventType = words[0], words[1]
	if len(words) == 3 {
		var data json.RawMessage
		if err := json.Unmarshal([]byte(words[2]), &data); err != nil {
			return w, fmt.Errorf(`the data is not JSON: %w; quote it for the shell, as in '{"amount": 4200}'`, err)
		}
		w.Data = data
	}
	if endpoint != "" {
		if w.EndpointID, err = uuid.Parse(endpoint); err != nil || w.EndpointID == uuid.Nil {
			return w, fmt.Errorf("--endpoint %q is not the id of an endpoint: SELECT id, organization_id FROM webhook_endpoints lists them", endpoint)
		}
	}
	return w, nil
}

func trigger(ctx context.Context, st *store.Store, what store.TestWebhook, wait time.Duration, out io.Writer) error {
	event, _, err := st.SendTest(ctx, what)
	if err != nil {
		if why, refused := store.RefusedEvent(err); refused {
			return fmt.Errorf("%w: %s", errConfig, why)
		}
		return err
	}
	explained, err := st.Explain(ctx, event)
	if err != nil {
		return err
	}
	f := &follower{store: st, event: event, out: out, paint: terminal.PaintFor(out), told: map[uuid.UUID]*told{}}
	f.line("event %s: %s of %s", event, terminal.Printable(what.EventType), terminal.Printable(what.OrganizationID))
	f.begin(explained)
	if len(f.all) == 0 {
		return owedToNobody(event, what, len(explained) > 0)
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if err := f.follow(ctx); err != nil {
		return err
	}
	return f.verdict(context.WithoutCancel(ctx))
}

// owedToNobody says what to do. An organization without endpoints may be a misspelt one.
func owedToNobody(event uuid.UUID, what store.TestWebhook, endpoints bool) error {
	if endpoints {
		return fmt.Errorf("nobody is owed event %s: --endpoint ID sends to an endpoint that is not subscribed", event)
	}
	return fmt.Errorf("nobody is owed event %s, because organization %q has no endpoint: SELECT DISTINCT organization_id FROM webhook_endpoints lists those that have, "+
		"and webhook_create_endpoint makes one", event, what.OrganizationID)
}

const (
	// followEvery is how often the rows are looked at: often enough to read along.
	followEvery = 200 * time.Millisecond

	// maxReasons bounds the endpoints that are listed because nothing is owed to them.
	maxReasons = 10
)

// A follower tells what becomes of an event's deliveries.
type follower struct {
	store *store.Store
	event uuid.UUID
	out   io.Writer
	paint terminal.Paint
	all   []uuid.UUID
	told  map[uuid.UUID]*told
}

// A told is what was told of a delivery.
type told struct {
	number   int // in the list
	attempts int
	status   webhook.Status
}

func (t *told) ended() bool {
	return t.status == webhook.Success || t.status == webhook.Failed || t.status == webhook.Cancelled
}

func (f *follower) line(format string, args ...any) { fmt.Fprintf(f.out, format+"\n", args...) }

func (f *follower) number(t *told) string {
	return f.paint.Text(terminal.Dim, "#"+strconv.Itoa(t.number))
}

// begin lists who is owed the event, and who not.
func (f *follower) begin(explained []store.Explained) {
	passed := 0
	for _, x := range explained {
		if x.DeliveryID != uuid.Nil {
			f.all = append(f.all, x.DeliveryID)
			t := &told{number: len(f.all)}
			f.told[x.DeliveryID] = t
			f.line("%s  %s  endpoint %s, delivery %s", f.number(t), terminal.Site(x.URL), x.EndpointID, x.DeliveryID)
			continue
		}
		if passed++; passed <= maxReasons {
			f.line("--  %s  endpoint %s: %s", terminal.Site(x.URL), x.EndpointID, terminal.Printable(x.Reason))
		}
	}
	if passed > maxReasons {
		f.line("--  and %d more that are not owed it: SELECT * FROM webhook_explain('%s')", passed-maxReasons, f.event)
	}
	if len(explained) == 0 {
		f.line("--  not owed: the organization has no endpoint")
	}
}

// follow tells what happens until everything has ended, or the context does.
func (f *follower) follow(ctx context.Context) error {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		progress, err := f.store.Progress(ctx, f.open())
		if err != nil && ctx.Err() == nil {
			return err
		}
		for _, p := range progress {
			f.tell(f.told[p.DeliveryID], p)
		}
		if len(f.open()) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// open returns the deliveries that have not ended.
func (f *follower) open() (ids []uuid.UUID) {
	for _, id := range f.all {
		if !f.told[id].ended() {
			ids = append(ids, id)
		}
	}
	return ids
}

// tell tells what is new of one delivery.
func (f *follower) tell(t *told, p store.Progress) {
	for i, a := range p.Attempts {
		if a.Number <= t.attempts {
			continue
		}
		t.attempts = a.Number
		next := ""
		if p.Status == webhook.Retrying && i == len(p.Attempts)-1 {
			next = "; the next is due in " + p.NextIn.Round(100*time.Millisecond).String()
		}
		f.line("%s  attempt %d: %s%s", f.number(t), a.Number, terminal.Printable(cameTo(a)), next)
	}
	if p.Status == t.status {
		return
	}
	t.status = p.Status
	switch {
	case t.status == webhook.Success:
		f.line("%s  %s", f.number(t), f.paint.Text(terminal.Green, "success"))
	case t.ended():
		f.line("%s  %s", f.number(t), f.paint.Text(terminal.Red, string(t.status)))
	case t.status == webhook.Pending:
		f.line("%s  pending: it waits for an attempt", f.number(t))
	}
}

// cameTo says what an attempt came to.
func cameTo(a store.PastAttempt) string {
	var words []string
	if a.StatusCode != 0 {
		words = append(words, strconv.Itoa(a.StatusCode))
	}
	if a.Class != "" {
		words = append(words, a.Class)
	}
	if a.Error != "" {
		words = append(words, "("+a.Error+")")
	}
	return strings.Join(words, " ") + " in " + (time.Duration(a.DurationMS) * time.Millisecond).String()
}

// verdict says what all of it came to, and why what is open still waits. Its error says that not
// all succeeded.
func (f *follower) verdict(ctx context.Context) error {
	count := map[webhook.Status]int{}
	for _, t := range f.told {
		count[t.status]++
	}
	if count[webhook.Success] == len(f.all) {
		f.line("all succeeded: %d of %d", len(f.all), len(f.all))
		return nil
	}
	open := f.open()
	f.reasons(ctx, open)
	return fmt.Errorf("not all deliveries succeeded: %d of %d did, %d failed, %d were cancelled, %d wait", count[webhook.Success], len(f.all),
		count[webhook.Failed], count[webhook.Cancelled], len(open))
}

// reasonsWithin bounds the last look.
const reasonsWithin = 5 * time.Second

// reasons says why deliveries wait, if the database answers.
func (f *follower) reasons(ctx context.Context, open []uuid.UUID) {
	if len(open) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, reasonsWithin)
	defer cancel()
	explained, err := f.store.Explain(ctx, f.event)
	if err != nil {
		f.line("why they wait cannot be read: %v", err)
		return
	}
	for _, x := range explained {
		if slices.Contains(open, x.DeliveryID) {
			f.line("%s  still waiting: %s", f.number(f.told[x.DeliveryID]), terminal.Printable(x.Reason))
		}
	}
}
