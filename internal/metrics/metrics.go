// Package metrics has the metrics of all gates of the process.
package metrics

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/signed-playback/caddy-signed-playback/internal/admission"
	"github.com/signed-playback/caddy-signed-playback/internal/controlapi"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/manifest"
	"github.com/signed-playback/caddy-signed-playback/mediacache"
)

const namespace, subsystem = "caddy", "signed_playback"

// Metrics are the collectors of all gates of the process. They are created once
// and registered with the registry of each config, so a reload does not reset
// them.
type Metrics struct {
	Requests        *prometheus.CounterVec
	allowed         map[playbackpath.Kind]prometheus.Counter // counters of allowed requests
	ManifestSeconds prometheus.Histogram
	URIs            *prometheus.CounterVec
	storeErrors     *prometheus.CounterVec
	CacheHits       prometheus.Counter // of verified tokens
	CacheMisses     prometheus.Counter
	Verified        map[refusal.Reason]prometheus.Counter // "" for success
	VerifySeconds   prometheus.Histogram
	SessionsEnded   map[sessions.Reason]prometheus.Counter
	Sharing         prometheus.Counter
	sessionsDropped *prometheus.CounterVec
	admissions      map[admission.Result]prometheus.Counter
	admissionTime   prometheus.Histogram
	CacheResults    map[mediacache.Result]prometheus.Counter // of the media caches

	Refusals controlapi.RefusalHistory

	collectors []prometheus.Collector
}

// Process returns the metrics of the process.
var Process = sync.OnceValue(New)

// DroppedEvent is what CountDropped counts if the receiver of session_events has not taken an event.
const DroppedEvent = "event"

// New returns metrics that are zero.
func New() *Metrics {
	m := &Metrics{Refusals: controlapi.RefusalHistory{Began: time.Now()}}
	m.Requests = m.counters("requests_total", "Requests by outcome (allowed, refused, would_refuse, preflight), reason and kind of resource.", "result", "reason", "kind")
	m.allowed = beginRequests(m.Requests)
	m.CacheHits = m.counter("token_cache_hits_total", "Requests whose token was remembered as verified.")
	m.CacheMisses = m.counter("token_cache_misses_total", "Requests whose token was not remembered, including garbage.")
	verifications := m.counters("token_verifications_total", "Signature checks by result: ok, or the reason of the refusal.", "result")
	m.Verified = series(verifications, []refusal.Reason{refusal.SignatureInvalid, refusal.RulesInvalid, refusal.VerificationLimited})
	m.Verified[""] = verifications.WithLabelValues("ok")
	m.VerifySeconds = m.histogram("verification_seconds", "Time of a signature check, without the wait for its turn.", prometheus.ExponentialBuckets(1e-5, 2, 12))
	m.ManifestSeconds = m.histogram("manifest_rewrite_seconds", "Time that the rewriting of a manifest took.", prometheus.ExponentialBuckets(1e-5, 4, 9))
	m.URIs = m.counters("manifest_uris_total", "URIs in manifests by outcome: rewritten, left unchanged, or left unchanged although they lead out of the video's folder (outside); and those that the gate refuses for their names (refused).", "outcome")
	m.CountURIs(manifest.Stats{})
	m.storeErrors = m.counters("store_errors_total", "Failures of the store by operation: changes, get, list, update and sessions (those of a fleet, in Redis) failed, or decode found a damaged object.", "operation")
	series(m.storeErrors, []string{"changes", "get", "list", "update", "sessions", "decode"})
	ended := m.counters("sessions_ended_total", "Playback sessions that have ended, by reason: timeout, limit, takeover, deleted, stopped or until.", "reason")
	m.SessionsEnded = series(ended, sessions.Reasons())
	m.sessionsDropped = m.counters("sessions_dropped_total", "What was too much: requests for a session that found no room and played uncounted (session), ends of sessions that were not told (end), and those that the receiver of session_events has not taken (event).", "what")
	m.Sharing = m.counter("sharing_reports_total", "Viewers who were reported because they probably share a token.")
	series(m.sessionsDropped, []string{sessions.DroppedSession, sessions.DroppedEnd, DroppedEvent})
	admissions := m.counters("admissions_total", "Questions to the back end of admission by result: allowed, denied, timeout, failed, status, invalid, or limited for those that were not asked.", "result")
	m.admissions = series(admissions, admission.Results())
	m.admissionTime = m.histogram("admission_seconds", "Time that the back end of admission took.", prometheus.ExponentialBuckets(0.001, 2, 11))
	cacheRequests := m.counters("cache_requests_total", "Requests to the media cache by what it did: hit, miss, collapsed, stale, revalidated or bypass.", "result")
	m.CacheResults = series(cacheRequests, mediacache.Results())
	return m
}

// series creates the series of a counter at 0, one for each value of its label.
func series[L comparable](counter *prometheus.CounterVec, values []L) map[L]prometheus.Counter {
	all := make(map[L]prometheus.Counter, len(values))
	for _, value := range values {
		all[value] = counter.WithLabelValues(fmt.Sprint(value))
	}
	return all
}

// counters adds a counter with labels to the collectors.
func (m *Metrics) counters(name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help}, labels)
	m.collectors = append(m.collectors, c)
	return c
}

func (m *Metrics) counter(name, help string) prometheus.Counter {
	return m.counters(name, help).WithLabelValues()
}

// histogram adds a histogram with buckets in seconds to the collectors.
func (m *Metrics) histogram(name, help string, buckets []float64) prometheus.Histogram {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help, Buckets: buckets})
	m.collectors = append(m.collectors, h)
	return h
}

// beginRequests creates each series of requests at 0. Prometheus computes no rate
// or increase for the first sample of a series that begins at 1.
func beginRequests(requests *prometheus.CounterVec) (allowed map[playbackpath.Kind]prometheus.Counter) {
	allowed = make(map[playbackpath.Kind]prometheus.Counter)
	for _, k := range playbackpath.Kinds {
		allowed[k] = requests.WithLabelValues(string(refusal.Allowed), "", string(k))
		for _, why := range refusal.Reasons() {
			requests.WithLabelValues(string(refusal.Refused), string(why), string(k))
			if why.Reportable() {
				requests.WithLabelValues(string(refusal.WouldRefuse), string(why), string(k))
			}
		}
	}
	return allowed
}

// Register adds the collectors to the registry of a config.
func (m *Metrics) Register(registry *prometheus.Registry) error {
	for _, collector := range m.collectors {
		err := registry.Register(collector)
		if _, known := errors.AsType[prometheus.AlreadyRegisteredError](err); err != nil && !known {
			return fmt.Errorf("registering metrics: %w", err)
		}
	}
	return nil
}

// Gauges adds metrics whose values are computed on each scrape to the registry of a config.
type Gauges struct {
	Registry *prometheus.Registry
	Labels   prometheus.Labels // of each
	Err      error             // of the first that could not be added
}

// Add adds a gauge, unless one before it could not be added.
func (g *Gauges) Add(name, help string, value func() float64) {
	if g.Err != nil {
		return
	}
	opts := prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help, ConstLabels: g.Labels}
	if err := g.Registry.Register(prometheus.NewGaugeFunc(opts, value)); err != nil {
		g.Err = fmt.Errorf("registering metrics: %w", err)
	}
}

// CountRequest counts a request by its outcome.
func (m *Metrics) CountRequest(became refusal.Result, why refusal.Reason, k playbackpath.Kind) {
	if became == refusal.Allowed {
		m.allowed[k].Inc()
		return
	}
	m.Requests.WithLabelValues(string(became), string(why), string(k)).Inc()
	if why != "" {
		m.Refusals.Count(string(why), became == refusal.WouldRefuse, time.Now())
	}
}

// CountVerification counts a verification by its outcome.
func (m *Metrics) CountVerification(err error) {
	var why refusal.Reason
	if refused, ok := errors.AsType[*refusal.Error](err); ok {
		why = refused.Reason
	}
	if counter, known := m.Verified[why]; known {
		counter.Inc()
	}
}

// CountStoreError counts a failed operation of the store.
func (m *Metrics) CountStoreError(operation string) {
	m.storeErrors.WithLabelValues(operation).Inc()
}

// CountDropped counts what a bound of playback sessions has dropped.
func (m *Metrics) CountDropped(what string) { m.sessionsDropped.WithLabelValues(what).Inc() }

// CountAdmission counts a question to the back end.
func (m *Metrics) CountAdmission(result admission.Result, took time.Duration) {
	m.admissions[result].Inc()
	if result != admission.Limited {
		m.admissionTime.Observe(took.Seconds())
	}
}

// CountURIs counts the URIs of a manifest.
func (m *Metrics) CountURIs(stats manifest.Stats) {
	m.URIs.WithLabelValues("rewritten").Add(float64(stats.Rewritten))
	m.URIs.WithLabelValues("left").Add(float64(stats.Left))
	m.URIs.WithLabelValues("outside").Add(float64(stats.Outside))
	m.URIs.WithLabelValues("refused").Add(float64(stats.Refused))
}
