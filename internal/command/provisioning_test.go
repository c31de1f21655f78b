package command_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/signed-playback/caddy-signed-playback"
	"github.com/signed-playback/caddy-signed-playback/internal/command"
)

// Caddy loads the config of proxy for each form of address, and listens there.
func TestProxyConfigLoads(t *testing.T) {
	for _, from := range []string{"media.example.com:8443", ":8080", "http://[::1]:8080", "https://127.0.0.1:8443", "0.0.0.0:8080", "[::]:8080"} {
		text, listen := command.ProxyConfig(t, from)
		adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt(text, nil)
		if err != nil {
			t.Fatal(err)
		}
		var config caddy.Config
		if err := json.Unmarshal(adapted, &config); err != nil {
			t.Fatal(err)
		}
		if http := string(config.AppsRaw["http"]); !strings.Contains(http, `"listen":["`+listen+`"]`) {
			t.Errorf("--from %s: want %s in %s", from, listen, http)
		}
		config.StorageRaw = caddyconfig.JSONModuleObject(map[string]string{"root": t.TempDir()}, "module", "file_system", nil)
		if err := caddy.Validate(&config); err != nil {
			t.Errorf("--from %s: %v", from, err)
		}
	}
}
