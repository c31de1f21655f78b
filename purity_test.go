package signedplayback

import (
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
)

const modulePath = "github.com/signed-playback/caddy-signed-playback"

// room is a package outside of the root, below the module's path.
type room struct {
	path          string
	imports, deps []string
}

// rooms asks the command go.
var rooms = sync.OnceValue(func() (list []room) {
	out := must(exec.Command("go", "list", "-f", `{{.ImportPath}},{{join .Imports " "}},{{join .Deps " "}}`, "./token", "./manifest", "./mediacache", "./internal/...").Output())
	for line := range strings.Lines(string(out)) {
		columns := strings.Split(strings.TrimSpace(line), ",")
		list = append(list, room{strings.TrimPrefix(columns[0], modulePath+"/"), strings.Fields(columns[1]), strings.Fields(columns[2])})
	}
	return list
})

// A back end that signs tokens imports package token and must not get a web
// server with it. No other package imports the root package. Only the commands, and what they
// read configs with, import Caddy. Those that use a store get the interface of Caddy's storage.
func TestOnlyTheRootPackageKnowsCaddy(t *testing.T) {
	t.Parallel()
	knowCaddy := []string{"internal/command", "internal/replay", "internal/siteconfig"}
	for _, room := range rooms() {
		usesStore := strings.HasPrefix(room.path, "internal/store") || slices.ContainsFunc(room.deps, func(dep string) bool { return strings.HasPrefix(dep, modulePath+"/internal/store") })
		for _, dep := range room.deps {
			storage := usesStore && !strings.HasPrefix(dep, "github.com/caddyserver/caddy/")
			if dep == modulePath || strings.HasPrefix(dep, "github.com/caddyserver/") && !storage && !slices.Contains(knowCaddy, room.path) {
				t.Errorf("%s imports %s", room.path, dep)
			}
		}
	}
}
