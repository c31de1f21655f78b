package signedplayback

import (
	"errors"
	"fmt"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/signed-playback/caddy-signed-playback/manifest"
)

// metrics are the collectors of all gates of the process. They are made once
// and registered with each config's registry, so that a reload does not set
// them back.
type metrics struct {
	manifestSeconds prometheus.Histogram
	urisRewritten   prometheus.Counter
	urisLeft        prometheus.Counter
	urisOutside     prometheus.Counter

	collectors []prometheus.Collector
}

var collectMetrics = sync.OnceValue(func() *metrics {
	const namespace, subsystem = "caddy", "signed_playback"
	seconds := prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: namespace, Subsystem: subsystem, Name: "manifest_rewrite_seconds",
		Help:    "Time that the rewriting of a manifest took.",
		Buckets: prometheus.ExponentialBuckets(1e-5, 4, 9),
	})
	uris := prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: namespace, Subsystem: subsystem, Name: "manifest_uris_total",
		Help: "URIs in manifests by what became of them: rewritten, left as they are, or left although they lead out of the video's folder.",
	}, []string{"outcome"})
	return &metrics{
		manifestSeconds: seconds,
		urisRewritten:   uris.WithLabelValues("rewritten"),
		urisLeft:        uris.WithLabelValues("left"),
		urisOutside:     uris.WithLabelValues("outside"),
		collectors:      []prometheus.Collector{seconds, uris},
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

func (m *metrics) countURIs(stats manifest.Stats) {
	m.urisRewritten.Add(float64(stats.Rewritten))
	m.urisLeft.Add(float64(stats.Left))
	m.urisOutside.Add(float64(stats.Outside))
}
