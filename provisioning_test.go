package signedplayback

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/signed-playback/caddy-signed-playback/internal/command"
	"github.com/signed-playback/caddy-signed-playback/internal/replay"
)

// provisioning guards defaults of the whole process, to which Caddy writes while it
// provisions a config. The linter permits calls that provision in this file alone.
var provisioning sync.Mutex

// alone provisions a config while no other test does.
func alone(provision func() error) error {
	provisioning.Lock()
	defer provisioning.Unlock()
	defer silenceCaddy()
	return provision()
}

// silenceCaddy discards Caddy's default log. Otherwise it is the log of the last config, and
// the lines of other tests create its file again after its test has removed the folder.
func silenceCaddy() {
	must(caddy.ProvisionContext(&caddy.Config{Logging: noLog()}))
}

func noLog() *caddy.Logging {
	nowhere := caddy.BaseLog{WriterRaw: json.RawMessage(`{"output":"discard"}`)}
	return &caddy.Logging{Logs: map[string]*caddy.CustomLog{"default": {BaseLog: nowhere}}}
}

// provisionContext provisions a config. A config without a storage gets its own, so that
// parallel tests do not wait for each other's locks. One without a log discards it.
func provisionContext(cfg *caddy.Config) (ctx caddy.Context, err error) {
	if cfg.StorageRaw == nil {
		folder := must(os.MkdirTemp(caddy.DefaultStorage.Path, ""))
		cfg.StorageRaw = caddyconfig.JSONModuleObject(map[string]string{"root": folder}, "module", "file_system", nil)
	}
	if cfg.Logging != nil {
		err = alone(func() error { ctx, err = caddy.ProvisionContext(cfg); return err })
		return ctx, err
	}
	cfg.Logging = noLog()
	provisioning.Lock()
	defer provisioning.Unlock()
	return caddy.ProvisionContext(cfg)
}

func validateConfig(cfg *caddy.Config) error {
	return alone(func() error { return caddy.Validate(cfg) })
}

// explaining runs the command for a request at testTime, of a viewer at 203.0.113.7 unless change
// says otherwise. The error of a command that fails has its text.
func explaining(config, address string, change func(*replay.Request), flags ...string) (string, error) {
	asked := replay.Request{IP: "203.0.113.7", Method: http.MethodGet}
	if change != nil {
		change(&asked)
	}
	args := append([]string{"explain", address, "--config", config, "--ip", asked.IP, "--method", asked.Method, "--at", testTime.Format(time.RFC3339)}, flags...)
	for _, header := range asked.Headers {
		args = append(args, "--header", header)
	}
	stdout, stderr, err := run(args...)
	if err != nil && !errors.Is(err, command.ErrRefused) {
		err = errors.New(stderr)
	}
	return stdout, err
}

// replayed is what the command explain replays requests in.
func replayed(t *testing.T, config string) (loaded *replay.Config) {
	t.Helper()
	err := alone(func() (err error) {
		loaded, err = replay.Load(config, replay.Module{Gateway: gatewayOf, Trace: traced})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = loaded.Gateway.Cleanup() })
	return loaded
}

// run executes `caddy signed-playback` with arguments as the command line does. stderr has
// the error of a command that fails.
func run(args ...string) (stdout, stderr string, err error) {
	return runIn(".", os.TempDir(), "", args...)
}

// runIn executes it in a folder, with standard input and a folder for temporary files. No
// test that calls it for another folder may be parallel, because all of them are elsewhere meanwhile.
func runIn(folder, temp, stdin string, args ...string) (stdout, stderr string, err error) {
	root := &cobra.Command{Use: "signed-playback", SilenceUsage: true}
	caddycmd.Commands()["signed-playback"].CobraFunc(root)
	var out, errs bytes.Buffer
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&out)
	root.SetErr(&errs)
	root.SetArgs(args)
	err = alone(func() error {
		before, tempBefore := must(os.Getwd()), os.Getenv("TMPDIR")
		defer func() { must(struct{}{}, errors.Join(os.Chdir(before), os.Setenv("TMPDIR", tempBefore))) }()
		must(struct{}{}, errors.Join(os.Chdir(folder), os.Setenv("TMPDIR", temp)))
		return root.Execute()
	})
	return out.String(), errs.String(), err
}
