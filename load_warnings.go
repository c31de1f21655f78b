package signedplayback

import (
	"net/netip"
	"net/url"
	"os"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/routecheck"
	"github.com/signed-playback/caddy-signed-playback/internal/siteconfig"
	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// checkServer logs what is wrong with the server whose gate is being provisioned,
// once for each server. `caddy validate` shows it too.
func (a *App) checkServer(ctx caddy.Context) error {
	server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if !ok || a.checked[server] {
		return nil
	}
	if a.checked == nil {
		a.checked = make(map[*caddyhttp.Server]bool)
	}
	a.checked[server] = true
	report, err := routecheck.Check(siteconfig.Server(server))
	if err != nil {
		return err
	}
	for _, w := range report.Warnings {
		gate := zap.Skip() // a link, or all of the server
		if w.Source != "" {
			gate = zap.String("gate", w.Source)
		}
		a.logger.Warn(w.Text, zap.String("site", w.Site), gate)
	}
	for _, g := range report.Gates {
		if report.ErrorRoutes && server.WriteIdleTimeout < 0 {
			a.logger.Warn("without write_idle, error routes (handle_errors) can turn a refusal of the gate into a success, and nothing filters their headers; "+
				"give write_idle in the server's timeouts a positive value", zap.String("site", g.Site), zap.String("gate", g.Source))
		}
	}
	app, err := ctx.App("http")
	if err != nil {
		return err
	}
	core := ctx.Logger(app.(caddy.Module)).Core()
	for _, g := range report.Gates {
		if logs := siteconfig.UnredactedLogs(core, server.Logs, g.Site); len(logs) > 0 {
			a.logger.Warn("playback URLs, and with them tokens, get into logs; set `format signed_playback` in their log blocks",
				zap.String("site", g.Site), zap.String("gate", g.Source), zap.Strings("logs", logs))
		}
	}
	for _, link := range report.Links {
		if logs := siteconfig.UnredactedAccessLogs(core, server.Logs, link.Site); len(logs) > 0 {
			a.logger.Warn("links of signed_playback_mint, and with them tokens, get into logs; set `format signed_playback` in their log blocks",
				zap.String("site", link.Site), zap.Strings("logs", logs))
		}
		if a.publicURL == "" && !link.Gated {
			a.logger.Warn("links of signed_playback_mint lead to the site itself, which has no gate; set public_url to the address of the gate", zap.String("site", link.Site))
		}
	}
	return nil
}

// warnOfExposure logs which secrets others can read or replace.
func (a *App) warnOfExposure() {
	keyFiles, _ := resolveAll("key_file", a.KeyFiles)
	for _, file := range keyFiles {
		if data, err := os.ReadFile(file); err == nil && token.ContainsPrivateKey(data) {
			a.logger.Warn("key_file contains a private key, so anyone who can read the file can sign tokens; the gate needs only the public key, like the member `jwks` of keygen's output",
				zap.String("key_file", file))
		}
	}
	jwksURL, _ := resolve(a.JWKSURL)
	if u, err := url.Parse(jwksURL); err == nil && u.Scheme == "http" && !isLoopback(u.Hostname()) {
		a.logger.Warn("jwks_url is not encrypted, so others on the network can replace the keys and sign tokens; use https", zap.String("host", u.Host))
	}
	if address, err := resolve(a.StoreURL); err == nil && a.Store == "redis" {
		if host, why := store.RedisExposure(address, isLoopback); why != "" {
			a.logger.Warn("store redis: "+why+", so others on the network can read the signing key and change settings; use rediss:// with a certificate that verifies", zap.String("host", host))
		}
	}
}

// isLoopback reports whether a connection to a host stays on this machine.
func isLoopback(host string) bool {
	address, err := netip.ParseAddr(host)
	return err == nil && address.Unmap().IsLoopback() || strings.EqualFold(host, "localhost") || strings.HasSuffix(strings.ToLower(host), ".localhost")
}
