package command

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// testTime is the time of the commands.
var testTime = time.Unix(1_800_000_000, 0)

// testKey is the key of the commands.
var testKey = sync.OnceValue(func() *token.SigningKey { return must(token.GenerateSigningKey("k1")) })

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// reservedAddr returns an address for a server. A socket that does not listen is bound to
// it until cleanup, so the system gives the port to no program that lets it choose one.
func reservedAddr(cleanup func(func())) string {
	socket := must(syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0))
	cleanup(func() { _ = syscall.Close(socket) })
	err := syscall.SetsockoptInt(socket, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	if err = errors.Join(err, syscall.Bind(socket, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})); err != nil {
		panic(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", must(syscall.Getsockname(socket)).(*syscall.SockaddrInet4).Port)
}

// Times are durations from now, Unix seconds, or RFC 3339.
func TestParseTime(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"1h": time.Hour, "-5m": -5 * time.Minute, "2d": 48 * time.Hour, "0s": 0, "1800003600": time.Hour,
		"2027-01-15T08:00:00Z": 0, "2027-01-15T10:00:00+01:00": time.Hour,
	} {
		if got, err := parseTime(text, testTime); err != nil || !got.Equal(testTime.Add(want)) {
			t.Errorf("parseTime(%q) = %v, %v; want %v from now", text, got, err, want)
		}
	}
	for _, text := range []string{"", "tomorrow", "1.5", "60", "-60", "2027-01-15", "1h 5m", "9999999999999999999"} {
		if got, err := parseTime(text, testTime); err == nil {
			t.Errorf("parseTime(%q) = %v, want an error", text, got)
		}
	}
}

// inspect shows dates with their distance from now.
func TestRelativeTime(t *testing.T) {
	t.Parallel()
	for distance, want := range map[time.Duration]string{
		90 * time.Minute: "2027-01-15T09:30:00Z (in 1h30m0s)", 0: "2027-01-15T08:00:00Z (in 0s)", -time.Minute: "2027-01-15T07:59:00Z (1m0s ago)",
	} {
		if got := relativeTime(testTime.Add(distance), testTime); got != want {
			t.Errorf("relativeTime = %q, want %q", got, want)
		}
	}
}

// The help texts and the reference document these defaults.
func TestDefaultsOfFlags(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		command *cobra.Command
		want    map[string]string
	}{
		{keygenCommand(), map[string]string{"kid": "", "output": "", "public": ""}},
		{signCommand(), map[string]string{"key": "", "sub": "", "exp": "1h", "nbf": "", "kid": "", "rules": "", "aud": "", "iss": "", "url": "", "path": "manifest/video.m3u8", "downloadable": "false"}},
		{inspectCommand(Module{}), map[string]string{"url": "", "key": "", "json": "false"}},
		{explainCommand(Module{}), map[string]string{"config": "Caddyfile", "url": "", "ip": "", "origin": "", "referer": "", "header": "[]", "method": "GET", "at": "", "json": "false"}},
		{proxyCommand(Module{}), map[string]string{
			"from": "localhost", "to": "", "key": "", "sub": "demo", "exp": "1h", "path": "manifest/video.m3u8", "allowed-origins": "[]", "geoip-database": "", "player": "false", "hls-js": "", "access-log": "false", "debug": "false",
		}},
	} {
		for flag, want := range tc.want {
			if got := tc.command.Flag(flag).DefValue; got != want {
				t.Errorf("%s --%s is %q by default, want %q", tc.command.Name(), flag, got, want)
			}
		}
	}
}
