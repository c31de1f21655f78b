package signedplayback

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/signed-playback/caddy-signed-playback/manifest"
)

// Each config has a registry of its own. Collectors that were registered with
// the first one only would vanish with a reload, and new ones would start at 0.
func TestMetricsSurviveReloads(t *testing.T) {
	t.Parallel()
	m := collectMetrics()
	m.countURIs(manifest.Stats{Outside: 1})
	var first float64
	for reload := range 2 {
		registry := prometheus.NewPedanticRegistry()
		for range 2 { // two gates of one config
			if err := m.register(registry); err != nil {
				t.Fatal(err)
			}
		}
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		var outside float64
		for _, family := range families {
			if family.GetName() != "caddy_signed_playback_manifest_uris_total" {
				continue
			}
			for _, metric := range family.GetMetric() {
				if metric.GetLabel()[0].GetValue() == "outside" {
					outside = metric.GetCounter().GetValue()
				}
			}
		}
		if reload == 0 {
			first = outside
		}
		if outside < 1 || outside != first {
			t.Errorf("after %d reloads, %v URIs outside are counted, want %v", reload, outside, first)
		}
	}
}
