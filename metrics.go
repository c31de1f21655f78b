package signedplayback

import (
	"errors"
	"fmt"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/signed-playback/caddy-signed-playback/manifest"
)

const namespace, subsystem = "caddy", "signed_playback"

// metrics are the collectors of all gates of the process. They are made once
// and registered with each config's registry, so that a reload does not set
// them back.
type metrics struct {
	manifestSeconds prometheus.Histogram
	urisRewritten   prometheus.Counter
	urisLeft        prometheus.Counter
	urisOutside     prometheus.Counter
	storeErrors     *prometheus.CounterVec
	cacheHits       prometheus.Counter
	cacheMisses     prometheus.Counter
	verified        map[reason]prometheus.Counter // by why not; "" for success
	verifySeconds   prometheus.Histogram

	collectors []prometheus.Collector
}

var collectMetrics = sync.OnceValue(func() *metrics {
	seconds := prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: namespace, Subsystem: subsystem, Name: "manifest_rewrite_seconds",
		Help:    "Time that the rewriting of a manifest took.",
		Buckets: prometheus.ExponentialBuckets(1e-5, 4, 9),
	})
	uris := prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: namespace, Subsystem: subsystem, Name: "manifest_uris_total",
		Help: "URIs in manifests by what became of them: rewritten, left as they are, or left although they lead out of the video's folder.",
	}, []string{"outcome"})
	storeErrors := prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: namespace, Subsystem: subsystem, Name: "store_errors_total",
		Help: "Failures of the store by operation: changes, get, list and update failed; decode met a damaged object.",
	}, []string{"operation"})
	for _, operation := range []string{"changes", "get", "list", "update", "decode"} {
		storeErrors.WithLabelValues(operation)
	}
	hits := prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: namespace, Subsystem: subsystem, Name: "token_cache_hits_total",
		Help: "Requests whose token was remembered as verified.",
	})
	misses := prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: namespace, Subsystem: subsystem, Name: "token_cache_misses_total",
		Help: "Requests whose token was not, garbage included.",
	})
	verifySeconds := prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: namespace, Subsystem: subsystem, Name: "verification_seconds",
		Help:    "Time that the verification of a token took, without the wait for its turn.",
		Buckets: prometheus.ExponentialBuckets(1e-5, 2, 12),
	})
	verifications := prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: namespace, Subsystem: subsystem, Name: "token_verifications_total",
		Help: "Tokens whose signature was to be verified, by the result: ok, or the reason of the refusal.",
	}, []string{"result"})
	verified := map[reason]prometheus.Counter{"": verifications.WithLabelValues("ok")}
	for _, why := range []reason{reasonSignatureInvalid, reasonRulesInvalid, reasonVerificationLimited} {
		verified[why] = verifications.WithLabelValues(string(why))
	}
	return &metrics{
		cacheHits:       hits,
		cacheMisses:     misses,
		verified:        verified,
		verifySeconds:   verifySeconds,
		manifestSeconds: seconds,
		urisRewritten:   uris.WithLabelValues("rewritten"),
		urisLeft:        uris.WithLabelValues("left"),
		urisOutside:     uris.WithLabelValues("outside"),
		storeErrors:     storeErrors,
		collectors:      []prometheus.Collector{seconds, uris, storeErrors, hits, misses, verifySeconds, verifications},
	}
})

// register makes the metrics part of a config's registry.
func (m *metrics) register(registry *prometheus.Registry) error {
	for _, collector := range m.collectors {
		err := registry.Register(collector)
		if _, known := errors.AsType[prometheus.AlreadyRegisteredError](err); err != nil && !known {
			return fmt.Errorf("registering metrics: %w", err)
		}
	}
	return nil
}

// registerGauges adds what is looked up in an app when somebody asks.
func registerGauges(registry *prometheus.Registry, a *App) error {
	for _, gauge := range []struct {
		name, help string
		value      func() float64
	}{
		{
			"keys", "Keys that verify tokens: of key files, of the control API and of the remote key set.",
			func() float64 { return float64(a.keys.count()) },
		},
		{
			"token_cache_entries", "Tokens that are remembered as verified.",
			func() float64 { return float64(a.tokens.entries.EstimatedSize()) },
		},
		{
			"token_cache_bytes", "Memory that they take, estimated.",
			func() float64 { return float64(a.tokens.entries.WeightedSize()) },
		},
	} {
		opts := prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem, Name: gauge.name, Help: gauge.help}
		if err := registry.Register(prometheus.NewGaugeFunc(opts, gauge.value)); err != nil {
			return fmt.Errorf("registering metrics: %w", err)
		}
	}
	return nil
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

func (m *metrics) countURIs(stats manifest.Stats) {
	m.urisRewritten.Add(float64(stats.Rewritten))
	m.urisLeft.Add(float64(stats.Left))
	m.urisOutside.Add(float64(stats.Outside))
}
