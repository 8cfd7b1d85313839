package admin

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/walhook/walhook/cdc"
	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/terminal"
	"github.com/walhook/walhook/outbox"
)

//go:embed page
var pageFiles embed.FS

func pageFile(name string) string {
	text, err := pageFiles.ReadFile("page/" + name)
	if err != nil {
		panic(err) // it is part of the binary
	}
	return string(text)
}

var (
	pageStyle  = pageFile("page.css")
	pageScript = pageFile("page.js")

	// pagePolicy lets a browser run and load nothing but what is in the page, and send its forms
	// and its own look at what has changed back here.
	pagePolicy = "default-src 'none'; style-src '" + hashed(pageStyle) + "'; script-src '" + hashed(pageScript) +
		"'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

	pageTemplates = template.Must(template.New("").Funcs(template.FuncMap{
		"style":   func() template.HTML { return template.HTML("<style>" + pageStyle + "</style>") },
		"script":  func() template.HTML { return template.HTML(`<script type="module">` + pageScript + "</script>") },
		"because": because, "bytes": humanBytes, "count": terminal.Number[int64], "line": oneLine, "lines": manyLines, "outcome": outcome, "past": past,
		"since": since, "standing": standing, "when": when,
		"dict": dict,
		"ms":   func(n int) string { return short(time.Duration(n) * time.Millisecond) },
	}).ParseFS(pageFiles, "page/*.html"))
)

// dict is how a template gives another more than one value: names and values in turn.
func dict(pairs ...any) map[string]any {
	d := make(map[string]any, len(pairs)/2)
	for i := 0; i+1 < len(pairs); i += 2 {
		d[pairs[i].(string)] = pairs[i+1]
	}
	return d
}

// hashed is how a policy names what stands in the page.
func hashed(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// A page is the part of the server that people see.
type page struct {
	Options
	db    *database
	forms forms
}

// A view is what every page shows.
type view struct {
	Version string
	Role    string
	Problem string // what cannot be shown, in words
	Done    string // what the button did that led here
	forms   forms
}

// Token is what a form with an action has to hold.
func (v view) Token(action string) string { return v.forms.token(action) }

func (p *page) view(r *http.Request) view {
	return view{Version: p.Version, Role: roles[p.Stream().Role], Done: done(r.URL.Query()), forms: p.forms}
}

// A liveView is what the page looks at again every few seconds.
type liveView struct {
	view
	Headline  verdict
	Verdicts  []verdict
	Charts    []chart
	Endpoints []store.EndpointView
	More      bool
	Filter    filter
	Stats     schedule.Stats
	Stream    cdc.Status
	Database  store.Overview
}

func (p *page) live(ctx context.Context, r *http.Request) liveView {
	v := liveView{view: p.view(r), Stats: p.Stats(), Stream: p.Stream(), Filter: readFilter(r.URL.Query())}
	var err error
	if v.Database, err = p.db.overview(ctx); err != nil {
		v.Problem = err.Error()
	}
	if err == nil {
		if v.Endpoints, v.More, err = p.db.endpoints(ctx, v.Filter.Organization); err != nil {
			v.Problem = err.Error()
		}
	}
	samples := p.Samples.last()
	v.Charts = []chart{throughput(samples), latency(samples)}
	v.Verdicts = []verdict{aboutStream(v.Stream), aboutSlot(v.Database.Slot), aboutWaiting(v.Database), aboutEndpoints(v.Database.Endpoints)}
	v.Headline = headline(v.Problem, v.Verdicts)
	return v
}

// A filter is what the lists are asked for, as it stands in the page's address.
type filter struct {
	Organization, Endpoint, Type, Status, Until, Before string
}

// statusesOf are the statuses behind each choice. The first is the usual one.
var statusesOf = map[string][]string{
	"": {"retrying", "failed"}, "all": nil,
	"pending": {"pending"}, "retrying": {"retrying"}, "failed": {"failed"}, "cancelled": {"cancelled"}, "success": {"success"},
}

func readFilter(q url.Values) filter {
	return filter{q.Get("organization"), q.Get("endpoint"), q.Get("type"), q.Get("status"), q.Get("until"), q.Get("before")}
}

// With returns the address of the same lists from a delivery on.
func (f filter) With(before uuid.UUID) string {
	q := url.Values{}
	for name, value := range map[string]string{"organization": f.Organization, "endpoint": f.Endpoint, "type": f.Type, "status": f.Status, "before": before.String()} {
		if value != "" {
			q.Set(name, value)
		}
	}
	return "/?" + q.Encode() + "#deliveries"
}

// Live is the address that the page's script asks.
func (f filter) Live() string {
	return "/live?" + url.Values{"organization": {f.Organization}}.Encode()
}

// Any reports whether anything is asked for.
func (f filter) Any() bool { return f != filter{} }

// A statusChoice is an option of the form.
type statusChoice struct{ Value, Name string }

// Choices are the options of the form.
func (filter) Choices() []statusChoice {
	return []statusChoice{{"", "failing (retrying or failed)"}, {"retrying", "retrying"}, {"failed", "failed"}, {"cancelled", "cancelled"},
		{"pending", "pending"}, {"success", "success"}, {"all", "all"}}
}

// An overviewView is the page at /.
type overviewView struct {
	liveView
	List deliveryList
}

// A deliveryList is a table of deliveries.
type deliveryList struct {
	store.DeliveryPage
	Caption string
	OfOne   bool   // all are of the endpoint whose page it is
	None    string // instead of an empty table
	Next    string // the address of what follows
	Problem string
}

func (p *page) overview(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), databasePatience)
	defer cancel()
	v := overviewView{liveView: p.live(ctx, r)}
	v.List = p.list(ctx, v.Filter)
	p.write(w, http.StatusOK, "overview.html", v)
}

func (p *page) list(ctx context.Context, f filter) (l deliveryList) {
	chosen, err := f.deliveries()
	if err == nil {
		l.DeliveryPage, err = p.db.deliveries(ctx, chosen)
	}
	if err != nil {
		l.Problem = err.Error()
		return l
	}
	l.None = "No delivery fits."
	if l.DeliveryPage.Next != uuid.Nil {
		l.Next = f.With(l.DeliveryPage.Next)
	}
	return l
}

func (p *page) fragments(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), databasePatience)
	defer cancel()
	p.write(w, http.StatusOK, "live", p.live(ctx, r))
}

// An endpointView is an endpoint's page.
type endpointView struct {
	view
	Endpoint *store.EndpointView
	Sinces   []string
	Lists    []deliveryList
}

func (p *page) endpoint(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), databasePatience)
	defer cancel()
	v := endpointView{view: p.view(r), Sinces: sincesOf}
	id, err := uuid.Parse(r.PathValue("id"))
	if err == nil {
		v.Endpoint, err = p.db.endpoint(ctx, id)
	}
	if v.Endpoint == nil {
		p.nothing(w, r, "There is no such endpoint.", err)
		return
	}
	if err != nil {
		v.Problem = err.Error()
	}
	for _, of := range []struct{ caption, status, none string }{
		{"Waiting to be tried again", "retrying", "No delivery waits to be tried again."},
		{"Waiting for a first attempt or a replay", "pending", "No delivery waits for a first attempt or a replay."},
		{"Failed for good", "failed", "No delivery has failed for good."},
		{"Cancelled", "cancelled", "No delivery was cancelled."},
	} {
		l := p.list(ctx, filter{Endpoint: id.String(), Status: of.status})
		l.Caption, l.OfOne, l.None = of.caption, true, of.none
		v.Lists = append(v.Lists, l)
	}
	p.write(w, http.StatusOK, "endpoint.html", v)
}

// A deliveryDetail is a delivery's page.
type deliveryDetail struct {
	view
	Delivery *store.DeliveryDetail
}

func (p *page) delivery(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), databasePatience)
	defer cancel()
	v := deliveryDetail{view: p.view(r)}
	id, err := uuid.Parse(r.PathValue("id"))
	if err == nil {
		v.Delivery, err = p.db.delivery(ctx, id)
	}
	if v.Delivery == nil {
		p.nothing(w, r, "There is no such delivery. One that was just sent has its row when its outcome is recorded.", err)
		return
	}
	p.write(w, http.StatusOK, "delivery.html", v)
}

// A refusal is a page that says why not.
type refusal struct {
	view
	Why string
}

func (p *page) nothing(w http.ResponseWriter, r *http.Request, why string, err error) {
	status := http.StatusNotFound
	if err != nil && !isParse(r) {
		status, why = http.StatusServiceUnavailable, err.Error()
	}
	p.write(w, status, "refusal.html", refusal{p.view(r), why})
}

// isParse reports whether the id in a request's path is none.
func isParse(r *http.Request) bool { return uuid.Validate(r.PathValue("id")) != nil }

func (p *page) write(w http.ResponseWriter, status int, name string, v any) {
	var body bytes.Buffer
	if err := pageTemplates.ExecuteTemplate(&body, name, v); err != nil {
		refuse(w, http.StatusInternalServerError, err.Error())
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin")
	w.WriteHeader(status)
	_, _ = body.WriteTo(w) // the client has gone: there is nobody to tell
}

// deliveries turns the filter into the store's.
func (f filter) deliveries() (d store.DeliveryFilter, err error) {
	statuses, known := statusesOf[f.Status]
	if !known {
		return d, fmt.Errorf("status %q is none; take one of the list", f.Status)
	}
	d = store.DeliveryFilter{OrganizationID: f.Organization, EventType: f.Type, Statuses: slices.Clone(statuses)}
	if f.Endpoint != "" {
		if d.EndpointID, err = uuid.Parse(f.Endpoint); err != nil {
			return d, fmt.Errorf("endpoint %q is no id of an endpoint, which is a UUID", f.Endpoint)
		}
	}
	switch {
	case f.Before != "":
		if d.Before, err = uuid.Parse(f.Before); err != nil {
			return d, fmt.Errorf("before %q is no id of a delivery, which is a UUID", f.Before)
		}
	case f.Until != "":
		at, err := time.Parse("2006-01-02T15:04", f.Until)
		if err != nil || at.Unix() < 0 {
			return d, fmt.Errorf("until %q is no time; for example 2026-01-31T18:00, in UTC", f.Until)
		}
		d.Before = outbox.TimeID(at)
	}
	return d, nil
}
