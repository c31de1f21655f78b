package command

import (
	"fmt"
	"net"
	"testing"
)

// An origin that listens on all addresses is exposed at each of this machine's.
func TestDoctorFindsExposedOrigins(t *testing.T) {
	t.Parallel()
	for listen, want := range map[string]int{":0": len(ownAddresses()), "127.0.0.1:0": 0} {
		listener := must(net.Listen("tcp", listen))
		defer func() { _ = listener.Close() }()
		dial := fmt.Sprintf("127.0.0.1:%d", listener.Addr().(*net.TCPAddr).Port)
		list := upstreamsOf(map[string]any{"handler": "reverse_proxy", "upstreams": []any{map[string]any{"dial": dial}}})
		if found := new(checkup).exposedAt(t.Context(), list[0]); len(found) != want {
			t.Errorf("an origin that listens on %s: found %q, want %d addresses", listen, found, want)
		}
	}
}
