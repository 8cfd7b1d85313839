package admin

import (
	"context"
	"math"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/walhook/walhook/cdc"
	"github.com/walhook/walhook/deliver/schedule"
	"github.com/walhook/walhook/internal/store"
	"github.com/walhook/walhook/internal/webhook"
)

// Metrics are those that are measured and not looked up: hand Observe to the
// engine, and the Metrics to New.
type Metrics struct {
	durations *prometheus.HistogramVec
	resent    prometheus.CounterFunc
}

// NewMetrics returns Metrics that have seen nothing yet. resent is the sender's count.
func NewMetrics(resent func() uint64) *Metrics {
	return &Metrics{
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "walhook_attempt_duration_seconds",
			Help: "How long attempts took, by outcome.",
			// From a receiver next door to the longest timeouts that people set.
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"outcome"}),
		resent: prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "walhook_requests_resent_total",
			Help: "Requests that went out twice within their attempt, because a reused connection broke before any byte of an answer came. The receiver may have seen both.",
		}, func() float64 { return float64(resent()) }),
	}
}

// Observe counts an attempt. Event types are left out: a deployment may have hundreds.
func (m *Metrics) Observe(_ string, a webhook.Attempt) {
	outcome := "success"
	if a.Class != "" {
		outcome = "failure"
	}
	m.durations.WithLabelValues(outcome).Observe(a.Duration.Seconds())
}

// scrapesAtOnce bounds the scrapes under way: more than one scraper is likely, a
// crowd is not.
const scrapesAtOnce = 3

// metricsHandler serves a registry of our own, in which every name begins with
// walhook_, those of the Go runtime and the process too.
func metricsHandler(o Options, db *database) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(o.Metrics.durations, o.Metrics.resent, &snapshots{o, db}, collectors.NewProcessCollector(collectors.ProcessCollectorOpts{Namespace: "walhook"}))
	prometheus.WrapRegistererWithPrefix("walhook_", registry).MustRegister(collectors.NewGoCollector())
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: scrapesAtOnce})
}

// A sample describes one metric and says where its value is in a snapshot.
type sample[S any] struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*S) float64
}

func counter[S any](name, help string, value func(*S) float64) sample[S] {
	return sample[S]{prometheus.NewDesc(name, help, nil, nil), prometheus.CounterValue, value}
}

func gauge[S any](name, help string, value func(*S) float64) sample[S] {
	return sample[S]{prometheus.NewDesc(name, help, nil, nil), prometheus.GaugeValue, value}
}

// send leaves out what there is no snapshot of.
func send[S any](ch chan<- prometheus.Metric, samples []sample[S], snapshot *S) {
	if snapshot == nil {
		return
	}
	for _, s := range samples {
		ch <- prometheus.MustNewConstMetric(s.desc, s.kind, s.value(snapshot))
	}
}

// A histogram describes one that the engine keeps.
type histogram struct {
	desc   *prometheus.Desc
	counts func(*schedule.Stats) *schedule.Latency
}

var engineHistograms = []histogram{
	{prometheus.NewDesc("walhook_commit_to_attempt_seconds", "From the commit of an event, by PostgreSQL's clock, to the start of a delivery's first attempt by walhook's; of those that came by the stream.", nil, nil),
		func(s *schedule.Stats) *schedule.Latency { return &s.ToAttempt }},
	{prometheus.NewDesc("walhook_commit_to_recorded_seconds", "From the commit of an event to the commit of its first attempt's outcome, likewise.", nil, nil),
		func(s *schedule.Stats) *schedule.Latency { return &s.ToRecorded }},
}

var engineSamples = []sample[schedule.Stats]{
	counter("walhook_events_total", "Events that came by the stream.", func(s *schedule.Stats) float64 { return float64(s.Events) }),
	counter("walhook_outcomes_recorded_total", "Outcomes of attempts that were committed.", func(s *schedule.Stats) float64 { return float64(s.Recorded) }),
	counter("walhook_deliveries_parked_total", "Deliveries written as pending before an attempt.", func(s *schedule.Stats) float64 { return float64(s.Parked) }),
	counter("walhook_deliveries_leased_total", "Deliveries written as pending beside their attempt.", func(s *schedule.Stats) float64 { return float64(s.Leased) }),
	counter("walhook_deliveries_fetched_total", "Deliveries fetched from the table because they were due.", func(s *schedule.Stats) float64 { return float64(s.Fetched) }),
	counter("walhook_deliveries_reconciled_total", "Owed deliveries that the stream never brought: 0 in normal life.", func(s *schedule.Stats) float64 { return float64(s.Found) }),
	gauge("walhook_reconcile_pending", "1 while events are compared with deliveries, or have to be: after a first start or a lost slot.", func(s *schedule.Stats) float64 { return oneIf(s.Reconciling) }),
	gauge("walhook_window_deliveries", "Deliveries in memory; WALHOOK_WINDOW bounds them.", func(s *schedule.Stats) float64 { return float64(s.Window) }),
	gauge("walhook_deliveries_parking", "Deliveries whose pending row is about to be written.", func(s *schedule.Stats) float64 { return float64(s.Parking) }),
	gauge("walhook_window_bytes", "Payload bytes in memory; WALHOOK_MAX_MEMORY bounds them.", func(s *schedule.Stats) float64 { return float64(s.Bytes) }),
	gauge("walhook_attempts_in_flight", "Attempts under way; WALHOOK_MAX_IN_FLIGHT bounds them.", func(s *schedule.Stats) float64 { return float64(s.InFlight) }),
	gauge("walhook_outcomes_unrecorded", "Attempts that have ended and are not committed yet: what a crash now would repeat.", func(s *schedule.Stats) float64 { return float64(s.Unrecorded) }),
	gauge("walhook_lanes", "Endpoints with something to do.", func(s *schedule.Stats) float64 { return float64(s.Lanes) }),
	gauge("walhook_lanes_spilled", "Endpoints that are behind, and fed from the table.", func(s *schedule.Stats) float64 { return float64(s.Spilled) }),
	gauge("walhook_lanes_open", "Endpoints whose breaker is open: they failed many times in a row and get one probe at a time.", func(s *schedule.Stats) float64 { return float64(s.Open) }),
	gauge("walhook_recorded_lsn_bytes", "WAL position up to which every delivery has a row.", func(s *schedule.Stats) float64 { return float64(s.RecordedLSN) }),
	gauge("walhook_durable_lsn_bytes", "WAL position up to which these rows are durable.", func(s *schedule.Stats) float64 { return float64(s.ConfirmedLSN) }),
}

var streamSamples = []sample[cdc.Status]{
	gauge("walhook_stream_received_lsn_bytes", "Newest WAL position that came by the stream.", func(s *cdc.Status) float64 { return float64(s.Received) }),
	gauge("walhook_stream_confirmed_lsn_bytes", "WAL position that PostgreSQL was told it may forget up to.", func(s *cdc.Status) float64 { return float64(s.Confirmed) }),
	gauge("walhook_stream_trouble", "1 while something about the stream is wrong; /readyz says what.", func(s *cdc.Status) float64 { return oneIf(s.Err != "") }),
	gauge("walhook_stream_last_message_timestamp_seconds", "When PostgreSQL was last heard; 0: never.", func(s *cdc.Status) float64 {
		if s.LastMessage.IsZero() {
			return 0
		}
		return float64(s.LastMessage.UnixMilli()) / 1000
	}),
}

// What webhook_status says comes in parts, of which each is there or not.
var (
	slotSamples = []sample[store.SlotOverview]{
		gauge("walhook_slot_lag_bytes", "WAL that PostgreSQL keeps for the slot.", func(o *store.SlotOverview) float64 { return float64(o.LagBytes) }),
		gauge("walhook_slot_active", "1 while a walhook is connected to the slot.", func(o *store.SlotOverview) float64 { return oneIf(o.Active) }),
		gauge("walhook_slot_safe_wal_bytes", "WAL that may be written before the slot may be lost; +Inf where max_slot_wal_keep_size sets no limit.", safeBytes),
	}
	waitingSamples = []sample[store.WaitingOverview]{
		gauge("walhook_deliveries_pending", "Deliveries that wait for their first attempt or a replay. Exact while no more than 2,000 wait, with those that retry; else an estimate from PostgreSQL's statistics.", func(o *store.WaitingOverview) float64 { return float64(o.Pending) }),
		gauge("walhook_deliveries_retrying", "Deliveries that wait for their next attempt. Exact or an estimate, as walhook_deliveries_pending.", func(o *store.WaitingOverview) float64 { return float64(o.Retrying) }),
	}
	overdueSamples = []sample[time.Duration]{
		gauge("walhook_overdue_seconds", "How long the first delivery has been due that could be sent now: not what an open breaker, a rate or a pause holds.", func(d *time.Duration) float64 { return d.Seconds() }),
	}
	straySamples = []sample[int64]{
		gauge("walhook_stray_rows", "Rows outside of the daily partitions, up to 1,000 of each table: 0 in normal life.", func(n *int64) float64 { return float64(*n) }),
	}
	aheadSamples = []sample[int]{
		gauge("walhook_partitions_ahead", "Days from tomorrow on that have partitions: 14 in normal life.", func(n *int) float64 { return float64(*n) }),
	}
)

var (
	attemptsDesc = prometheus.NewDesc("walhook_attempts_total", "Attempts that have ended, by error class; success is one.", []string{"class"}, nil)
	faultsDesc   = prometheus.NewDesc("walhook_own_faults_total", "What kept deliveries waiting that is walhook's own fault, by kind: no attempt is counted.", []string{"kind"}, nil)
	standingDesc = prometheus.NewDesc("walhook_endpoints", "Endpoints of the table by state: ok; failing, the last attempt failed; open, and the breaker is open; paused; disabled.", []string{"state"}, nil)
	finishedDesc = prometheus.NewDesc("walhook_deliveries_finished_total", "Deliveries that walhook brought to an end, by status. One that is replayed ends once more.", []string{"status"}, nil)
	roleDesc     = prometheus.NewDesc("walhook_role", "1 for what this process is doing, 0 for the other roles.", []string{"role"}, nil)
	databaseDesc = prometheus.NewDesc("walhook_database_up", "1 where the database answered this scrape.", nil, nil)
	buildDesc    = prometheus.NewDesc("walhook_build_info", "Always 1.", []string{"version"}, nil)
)

// errorClasses are there from the start: a series that begins at 1 has no rate.
var errorClasses = []webhook.ErrorClass{
	webhook.ErrDNS, webhook.ErrConnect, webhook.ErrTLS, webhook.ErrTimeout, webhook.ErrReset, webhook.ErrProtocol,
	webhook.ErrRedirect, webhook.ErrHTTP4xx, webhook.ErrHTTP5xx, webhook.ErrBlocked, webhook.ErrBadRequest,
}

// finalStatuses are those that nothing follows, until somebody replays the delivery.
var finalStatuses = []webhook.Status{webhook.Success, webhook.Failed, webhook.Cancelled}

// snapshots collects what is looked up at each scrape, one snapshot of each kind.
type snapshots struct {
	o  Options
	db *database
}

// Describe lists all of it.
func (c *snapshots) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{attemptsDesc, faultsDesc, standingDesc, finishedDesc, roleDesc, databaseDesc, buildDesc} {
		ch <- desc
	}
	for _, h := range engineHistograms {
		ch <- h.desc
	}
	describe(ch, engineSamples)
	describe(ch, streamSamples)
	describe(ch, slotSamples)
	describe(ch, waitingSamples)
	describe(ch, overdueSamples)
	describe(ch, straySamples)
	describe(ch, aheadSamples)
}

func describe[S any](ch chan<- *prometheus.Desc, samples []sample[S]) {
	for _, s := range samples {
		ch <- s.desc
	}
}

// Collect takes the snapshots. What the database does not answer is left out.
func (c *snapshots) Collect(ch chan<- prometheus.Metric) {
	stats, stream := c.o.Stats(), c.o.Stream()
	send(ch, engineSamples, &stats)
	for _, h := range engineHistograms {
		atMost, count, sum := h.counts(&stats).Histogram()
		ch <- prometheus.MustNewConstHistogram(h.desc, count, sum, atMost)
	}
	send(ch, streamSamples, &stream)
	ch <- prometheus.MustNewConstMetric(buildDesc, prometheus.GaugeValue, 1, c.o.Version)
	ch <- prometheus.MustNewConstMetric(attemptsDesc, prometheus.CounterValue, float64(stats.Delivered), "success")
	for _, class := range errorClasses {
		ch <- prometheus.MustNewConstMetric(attemptsDesc, prometheus.CounterValue, float64(stats.Errors[class]), string(class))
	}
	for _, kind := range webhook.OwnFaults {
		ch <- prometheus.MustNewConstMetric(faultsDesc, prometheus.CounterValue, float64(stats.OwnFaults[kind]), string(kind))
	}
	for _, status := range finalStatuses {
		ch <- prometheus.MustNewConstMetric(finishedDesc, prometheus.CounterValue, float64(stats.Finished[status]), string(status))
	}
	for role, name := range roles {
		ch <- prometheus.MustNewConstMetric(roleDesc, prometheus.GaugeValue, oneIf(stream.Role == role), name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), databasePatience)
	defer cancel()
	overview, _ := c.db.overview(ctx) // what is wrong is on the status page
	ch <- prometheus.MustNewConstMetric(databaseDesc, prometheus.GaugeValue, oneIf(overview != store.Overview{}))
	send(ch, slotSamples, overview.Slot)
	send(ch, waitingSamples, overview.Waiting)
	sendEndpoints(ch, overview.Endpoints)
	send(ch, overdueSamples, overview.Overdue)
	send(ch, straySamples, overview.Strays)
	send(ch, aheadSamples, overview.Ahead)
}

// safeBytes tells a slot without a limit from one that is lost: PostgreSQL has no figure for either.
func safeBytes(o *store.SlotOverview) float64 {
	switch {
	case o.SafeBytes != nil:
		return float64(*o.SafeBytes)
	case o.WALStatus == "lost":
		return 0
	default:
		return math.Inf(1)
	}
}

func sendEndpoints(ch chan<- prometheus.Metric, o *store.EndpointsOverview) {
	if o == nil {
		return
	}
	for state, n := range map[string]int64{"ok": o.OK, "failing": o.Failing, "open": o.Open, "paused": o.Paused, "disabled": o.Disabled} {
		ch <- prometheus.MustNewConstMetric(standingDesc, prometheus.GaugeValue, float64(n), state)
	}
}

// roles are the stream's, in the words of /readyz.
var roles = map[cdc.Role]string{cdc.Streaming: "active", cdc.Standby: "standby", cdc.Connecting: "connecting"}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
