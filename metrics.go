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
	return &metrics{
		manifestSeconds: seconds,
		urisRewritten:   uris.WithLabelValues("rewritten"),
		urisLeft:        uris.WithLabelValues("left"),
		urisOutside:     uris.WithLabelValues("outside"),
		storeErrors:     storeErrors,
		collectors:      []prometheus.Collector{seconds, uris, storeErrors},
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

// registerKeys adds the number of a config's keys, which is counted when
// somebody asks.
func (*metrics) registerKeys(registry *prometheus.Registry, keys *keyring) error {
	err := registry.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: namespace, Subsystem: subsystem, Name: "keys",
		Help: "Keys that verify tokens: of key files, of the control API and of the remote key set.",
	}, func() float64 { return float64(keys.count()) }))
	if err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	return nil
}

func (m *metrics) countURIs(stats manifest.Stats) {
	m.urisRewritten.Add(float64(stats.Rewritten))
	m.urisLeft.Add(float64(stats.Left))
	m.urisOutside.Add(float64(stats.Outside))
}
