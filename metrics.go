package signedplayback

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/signed-playback/caddy-signed-playback/internal/admission"
	"github.com/signed-playback/caddy-signed-playback/internal/controlapi"
	"github.com/signed-playback/caddy-signed-playback/internal/geo"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/manifest"
	"github.com/signed-playback/caddy-signed-playback/mediacache"
)

const namespace, subsystem = "caddy", "signed_playback"

// metrics are the collectors of all gates of the process. They are created once
// and registered with the registry of each config, so a reload does not reset
// them.
type metrics struct {
	requests        *prometheus.CounterVec
	allowed         map[playbackpath.Kind]prometheus.Counter // counters of allowed requests
	manifestSeconds prometheus.Histogram
	urisRewritten   prometheus.Counter
	urisLeft        prometheus.Counter
	urisOutside     prometheus.Counter
	urisRefused     prometheus.Counter
	storeErrors     *prometheus.CounterVec
	cacheHits       prometheus.Counter
	cacheMisses     prometheus.Counter
	verified        map[reason]prometheus.Counter // "" for success
	verifySeconds   prometheus.Histogram
	sessionsEnded   map[sessions.Reason]prometheus.Counter
	sharing         prometheus.Counter
	sessionsDropped *prometheus.CounterVec
	admissions      map[admission.Result]prometheus.Counter
	admissionTime   prometheus.Histogram
	cacheResults    map[mediacache.Result]prometheus.Counter

	refusals controlapi.RefusalHistory

	collectors []prometheus.Collector
}

var collectMetrics = sync.OnceValue(newMetrics)

func newMetrics() *metrics {
	m := &metrics{refusals: controlapi.RefusalHistory{Began: time.Now()}}
	m.requests = m.counters("requests_total", "Requests by outcome (allowed, refused, would_refuse, preflight), reason and kind of resource.", "result", "reason", "kind")
	m.allowed = beginRequests(m.requests)
	m.cacheHits = m.counter("token_cache_hits_total", "Requests whose token was remembered as verified.")
	m.cacheMisses = m.counter("token_cache_misses_total", "Requests whose token was not remembered, including garbage.")
	verifications := m.counters("token_verifications_total", "Signature checks by result: ok, or the reason of the refusal.", "result")
	m.verified = map[reason]prometheus.Counter{"": verifications.WithLabelValues("ok")}
	for _, why := range []reason{reasonSignatureInvalid, reasonRulesInvalid, reasonVerificationLimited} {
		m.verified[why] = verifications.WithLabelValues(string(why))
	}
	m.verifySeconds = m.histogram("verification_seconds", "Time of a signature check, without the wait for its turn.", prometheus.ExponentialBuckets(1e-5, 2, 12))
	m.manifestSeconds = m.histogram("manifest_rewrite_seconds", "Time that the rewriting of a manifest took.", prometheus.ExponentialBuckets(1e-5, 4, 9))
	uris := m.counters("manifest_uris_total", "URIs in manifests by outcome: rewritten, left unchanged, or left unchanged although they lead out of the video's folder (outside); and those that the gate refuses for their names (refused).", "outcome")
	m.urisRewritten, m.urisLeft, m.urisOutside = uris.WithLabelValues("rewritten"), uris.WithLabelValues("left"), uris.WithLabelValues("outside")
	m.urisRefused = uris.WithLabelValues("refused")
	m.storeErrors = m.counters("store_errors_total", "Failures of the store by operation: changes, get, list, update and sessions (those of a fleet, in Redis) failed, or decode found a damaged object.", "operation")
	for _, operation := range []string{"changes", "get", "list", "update", "sessions", "decode"} {
		m.storeErrors.WithLabelValues(operation)
	}
	ended := m.counters("sessions_ended_total", "Playback sessions that have ended, by reason: timeout, limit, takeover, deleted, stopped or until.", "reason")
	m.sessionsEnded = make(map[sessions.Reason]prometheus.Counter)
	for _, why := range sessions.Reasons() {
		m.sessionsEnded[why] = ended.WithLabelValues(string(why))
	}
	m.sessionsDropped = m.counters("sessions_dropped_total", "What was too much: requests for a session that found no room and played uncounted (session), ends of sessions that were not told (end), and those that the receiver of session_events has not taken (event).", "what")
	m.sharing = m.counter("sharing_reports_total", "Viewers who were reported because they probably share a token.")
	for _, what := range []string{sessions.DroppedSession, sessions.DroppedEnd, droppedEvent} {
		m.sessionsDropped.WithLabelValues(what)
	}
	admissions := m.counters("admissions_total", "Questions to the back end of admission by result: allowed, denied, timeout, failed, status, invalid, or limited for those that were not asked.", "result")
	m.admissions = make(map[admission.Result]prometheus.Counter)
	for _, result := range admission.Results() {
		m.admissions[result] = admissions.WithLabelValues(string(result))
	}
	m.admissionTime = m.histogram("admission_seconds", "Time that the back end of admission took.", prometheus.ExponentialBuckets(0.001, 2, 11))
	cacheRequests := m.counters("cache_requests_total", "Requests to the media cache by what it did: hit, miss, collapsed, stale, revalidated or bypass.", "result")
	m.cacheResults = make(map[mediacache.Result]prometheus.Counter)
	for _, result := range mediacache.Results() {
		m.cacheResults[result] = cacheRequests.WithLabelValues(result.String())
	}
	return m
}

// counters adds a counter with labels to the collectors.
func (m *metrics) counters(name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help}, labels)
	m.collectors = append(m.collectors, c)
	return c
}

func (m *metrics) counter(name, help string) prometheus.Counter {
	return m.counters(name, help).WithLabelValues()
}

// histogram adds a histogram with buckets in seconds to the collectors.
func (m *metrics) histogram(name, help string, buckets []float64) prometheus.Histogram {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help, Buckets: buckets})
	m.collectors = append(m.collectors, h)
	return h
}

// beginRequests creates each series of requests at 0. Prometheus computes no rate
// or increase for the first sample of a series that begins at 1.
func beginRequests(requests *prometheus.CounterVec) (allowed map[playbackpath.Kind]prometheus.Counter) {
	allowed = make(map[playbackpath.Kind]prometheus.Counter)
	for _, k := range playbackpath.Kinds {
		allowed[k] = requests.WithLabelValues(string(resultAllowed), "", string(k))
		for _, why := range reasons {
			requests.WithLabelValues(string(resultRefused), string(why), string(k))
			if why.reportable() {
				requests.WithLabelValues(string(resultWouldRefuse), string(why), string(k))
			}
		}
	}
	return allowed
}

// register adds the collectors to the registry of a config.
func (m *metrics) register(registry *prometheus.Registry) error {
	for _, collector := range m.collectors {
		err := registry.Register(collector)
		if _, known := errors.AsType[prometheus.AlreadyRegisteredError](err); err != nil && !known {
			return fmt.Errorf("registering metrics: %w", err)
		}
	}
	return nil
}

// gauge is a metric that is computed on each scrape.
type gauge struct {
	name, help string
	value      func() float64
}

// registerGauges adds the gauges of an app to the registry of its config.
func registerGauges(registry *prometheus.Registry, a *App) error {
	gauges := []gauge{
		{
			"keys", "Keys that verify tokens: of key files, of the control API and of the remote key set.",
			func() float64 { return float64(a.keys.count()) },
		},
		{
			"token_cache_entries", "Tokens that are remembered as verified.",
			func() float64 { return float64(a.verifier.cache.entries.EstimatedSize()) },
		},
		{
			"token_cache_bytes", "Estimated memory of the remembered tokens.",
			func() float64 { return float64(a.verifier.cache.entries.WeightedSize()) },
		},
		{
			"manifest_memory_bytes", "Memory reserved for large manifests, which are buffered until they are rewritten and sent.",
			func() float64 { return float64(a.manifests.reserved.Load()) },
		},
		{
			"revocations", "Revocations of tokens and sessions in force.",
			func() float64 { return float64(a.state.RevocationCount()) },
		},
		{
			"store_up", "Whether the store of the control API's keys and settings answers; if not, the last known state is in force.",
			func() float64 { return boolToFloat(!a.state.Unavailable()) },
		},
	}
	for fact := range geo.FactCount {
		if !a.geo.Has(fact) {
			continue
		}
		option := fact.Option()
		name := strings.TrimSuffix(option, "_database")
		gauges = append(gauges, gauge{
			name + "_build_timestamp_seconds", "When the " + option + " in force was built, in Unix seconds.",
			func() float64 { return float64(a.geo.BuildTime(fact).Unix()) },
		}, gauge{
			name + "_last_reload_successful", "Whether the " + option + " in force is that of the file; if not, the file is missing or broken.",
			func() float64 { return boolToFloat(!a.geo.Stale(fact)) },
		})
	}
	if a.Sessions != nil && *a.Sessions {
		gauges = append(gauges, gauge{
			"sessions", "Playback sessions that run on this node.",
			func() float64 { return float64(a.state.tracker.Count()) },
		})
	}
	if remote := a.keys.remote; remote != nil {
		gauges = append(gauges, gauge{
			"jwks_last_success_timestamp_seconds", "When the remote key set was last loaded, in Unix seconds; 0 for never.",
			func() float64 { return float64(remote.LoadedAt().Unix()) },
		})
	}
	return register(registry, nil, gauges)
}

// registerCacheGauges adds the gauges of the media caches of an app.
func registerCacheGauges(registry *prometheus.Registry, a *App) error {
	for tier, usage := range map[string]func() (int, int64){"memory": a.cacheUsage, "disk": a.diskUsage} {
		err := register(registry, prometheus.Labels{"tier": tier}, []gauge{
			{
				"cache_objects", "Objects of the media caches.",
				func() float64 { objects, _ := usage(); return float64(objects) },
			},
			{
				"cache_bytes", "Bytes that the objects of the media caches take.",
				func() float64 { _, bytes := usage(); return float64(bytes) },
			},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func register(registry *prometheus.Registry, labels prometheus.Labels, gauges []gauge) error {
	for _, g := range gauges {
		opts := prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem, Name: g.name, Help: g.help, ConstLabels: labels}
		if err := registry.Register(prometheus.NewGaugeFunc(opts, g.value)); err != nil {
			return fmt.Errorf("registering metrics: %w", err)
		}
	}
	return nil
}

func boolToFloat(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// countRequest counts a request by its outcome.
func (m *metrics) countRequest(became result, why reason, k playbackpath.Kind) {
	if became == resultAllowed {
		m.allowed[k].Inc()
		return
	}
	m.requests.WithLabelValues(string(became), string(why), string(k)).Inc()
	if why != "" {
		m.refusals.Count(string(why), became == resultWouldRefuse, time.Now())
	}
}

// countVerification counts a verification by its outcome.
func (m *metrics) countVerification(err error) {
	var why reason
	if refused, ok := errors.AsType[*refusal](err); ok {
		why = refused.reason
	}
	if counter, known := m.verified[why]; known {
		counter.Inc()
	}
}

// countStoreError counts a failed operation of the store.
func (m *metrics) countStoreError(operation string) {
	m.storeErrors.WithLabelValues(operation).Inc()
}

// countDropped counts what a bound of playback sessions has dropped.
func (m *metrics) countDropped(what string) { m.sessionsDropped.WithLabelValues(what).Inc() }

// countAdmission counts a question to the back end.
func (m *metrics) countAdmission(result admission.Result, took time.Duration) {
	m.admissions[result].Inc()
	if result != admission.Limited {
		m.admissionTime.Observe(took.Seconds())
	}
}

func (m *metrics) countURIs(stats manifest.Stats) {
	m.urisRewritten.Add(float64(stats.Rewritten))
	m.urisLeft.Add(float64(stats.Left))
	m.urisOutside.Add(float64(stats.Outside))
	m.urisRefused.Add(float64(stats.Refused))
}
