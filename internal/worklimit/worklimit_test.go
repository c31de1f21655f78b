package worklimit

import (
	"fmt"
	"net/netip"
	"testing"
)

func TestNetworksOf(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"203.0.113.7":        "203.0.113.0/24 invalid Prefix",
		"::ffff:203.0.113.7": "203.0.113.0/24 invalid Prefix",
		"2001:db8:1:2ff::1":  "2001:db8:1:200::/56 2001:db8:1::/48",
		"":                   "invalid Prefix invalid Prefix",
	} {
		client, err := netip.ParseAddr(address)
		networks := NetworksOf(client.Unmap(), err == nil)
		if got := fmt.Sprint(networks.Own, networks.Site); got != want {
			t.Errorf("networksOf(%q) = %s, want %s", address, got, want)
		}
	}
}
