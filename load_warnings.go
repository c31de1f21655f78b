package signedplayback

import (
	"encoding/json"
	"net/netip"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/intercept"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/signed-playback/caddy-signed-playback/internal/redact"
	"github.com/signed-playback/caddy-signed-playback/internal/routecheck"
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
	report, err := routecheck.Check(serverConfig(server))
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
		if logs := unredactedLogs(core, server.Logs, g.Site); len(logs) > 0 {
			a.logger.Warn("playback URLs, and with them tokens, get into logs; set `format signed_playback` in their log blocks",
				zap.String("site", g.Site), zap.String("gate", g.Source), zap.Strings("logs", logs))
		}
	}
	for _, link := range report.Links {
		if logs := unredacted(core, accessLines(server.Logs, link.Site)); len(logs) > 0 {
			a.logger.Warn("links of signed_playback_mint, and with them tokens, get into logs; set `format signed_playback` in their log blocks",
				zap.String("site", link.Site), zap.Strings("logs", logs))
		}
		if a.publicURL == "" && !link.Gated {
			a.logger.Warn("links of signed_playback_mint lead to the site itself, which has no gate; set public_url to the address of the gate", zap.String("site", link.Site))
		}
	}
	return nil
}

// serverConfig returns a server in the form of the JSON config. The routes of a server
// whose gate is being provisioned are provisioned in part: the others are still JSON.
func serverConfig(server *caddyhttp.Server) routecheck.Server {
	config := routecheck.Server{Listen: server.Listen, Routes: configRoutes(server.Routes), NamedRoutes: make(map[string]routecheck.Route)}
	for name, route := range server.NamedRoutes {
		if route != nil {
			config.NamedRoutes[name] = configRoutes(caddyhttp.RouteList{*route})[0]
		}
	}
	config.Errors = configErrors(server.Errors)
	return config
}

// configRoutes returns routes in the form of the JSON config.
func configRoutes(routes caddyhttp.RouteList) (list []routecheck.Route) {
	for _, r := range routes {
		route := routecheck.Route{Group: r.Group, Terminal: r.Terminal, Match: configMatchers(r.MatcherSets)}
		for _, set := range r.MatcherSetsRaw {
			route.Match = append(route.Match, set)
		}
		for _, raw := range r.HandlersRaw {
			route.Handle = append(route.Handle, decodeHandler(raw))
		}
		for _, provisioned := range r.Handlers {
			raw, _ := json.Marshal(provisioned)
			h := decodeHandler(raw)
			h.Handler = caddy.GetModuleName(provisioned)
			switch provisioned := provisioned.(type) {
			case *caddyhttp.Subroute:
				h.Routes, h.Errors = configRoutes(provisioned.Routes), configErrors(provisioned.Errors)
			case *intercept.Intercept:
				setResponseRoutes(h, provisioned.HandleResponse)
			case *reverseproxy.Handler:
				setResponseRoutes(h, provisioned.HandleResponse)
			}
			route.Handle = append(route.Handle, h)
		}
		list = append(list, route)
	}
	return list
}

// setResponseRoutes sets the routes in which a provisioned handler handles responses.
func setResponseRoutes(h routecheck.Handler, responses []caddyhttp.ResponseHandler) {
	for i := range h.HandleResponse {
		h.HandleResponse[i].Routes = configRoutes(responses[i].Routes)
	}
}

func configErrors(errors *caddyhttp.HTTPErrorConfig) (config routecheck.Errors) {
	if errors != nil {
		config.Routes = configRoutes(errors.Routes)
	}
	return config
}

func decodeHandler(raw json.RawMessage) (h routecheck.Handler) {
	_ = json.Unmarshal(raw, &h) // other handlers may have fields of these names and other types
	return h
}

// configMatchers returns provisioned matchers in the form of the JSON config.
func configMatchers(sets caddyhttp.MatcherSets) (list []map[string]json.RawMessage) {
	for _, set := range sets {
		matchers := make(map[string]json.RawMessage)
		for _, m := range set {
			raw, _ := json.Marshal(m)
			if not, ok := m.(*caddyhttp.MatchNot); ok {
				raw, _ = json.Marshal(configMatchers(not.MatcherSets))
			}
			matchers[caddy.GetModuleName(m)] = raw
		}
		list = append(list, matchers)
	}
	return list
}

// unredactedLogs returns the names of the loggers of a site whose lines some log
// writes without the log format. The core is that of all HTTP logs.
func unredactedLogs(core zapcore.Core, config *caddyhttp.ServerLogConfig, site string) (names []string) {
	return unredacted(core, slices.Concat([]zapcore.Entry{
		{Level: zapcore.ErrorLevel, LoggerName: "http.log.error"}, // the line of an error has the request
		{Level: zapcore.DebugLevel, LoggerName: "http.handlers.reverse_proxy"},
	}, accessLines(config, site)))
}

// accessLines returns a line of each access log of a site.
func accessLines(config *caddyhttp.ServerLogConfig, site string) (lines []zapcore.Entry) {
	for host := range strings.FieldsSeq(site) {
		for _, name := range accessLogs(config, host) {
			lines = append(lines, zapcore.Entry{Level: zapcore.InfoLevel, LoggerName: strings.TrimSuffix("http.log.access."+name, ".")})
		}
	}
	return lines
}

// unredacted returns the names of the loggers of lines that some log writes without the
// log format.
func unredacted(core zapcore.Core, lines []zapcore.Entry) (names []string) {
	for _, line := range lines {
		if !slices.Contains(names, line.LoggerName) && writesUnredacted(core, line) {
			names = append(names, line.LoggerName)
		}
	}
	return names
}

// accessLogs returns the names of the access logs of a host, as
// ServerLogConfig chooses them.
func accessLogs(config *caddyhttp.ServerLogConfig, host string) []string {
	if config == nil || slices.Contains(config.SkipHosts, host) {
		return nil
	}
	if names, ok := config.LoggerNames[host]; ok {
		return names
	}
	labels := strings.Split(host, ".")
	for i := range labels {
		labels[i] = "*"
		if names, ok := config.LoggerNames[strings.Join(labels, ".")]; ok {
			return names
		}
	}
	if config.SkipUnmappedHosts {
		return nil
	}
	return []string{config.DefaultLoggerName}
}

// writesUnredacted reports whether a log that a core consists of would write a line
// without redacting it.
func writesUnredacted(core zapcore.Core, line zapcore.Entry) bool {
	// The type of several cores together, which zapcore does not export.
	if cores := reflect.ValueOf(core); cores.Kind() == reflect.Slice {
		for i := range cores.Len() {
			if one, ok := reflect.TypeAssert[zapcore.Core](cores.Index(i)); ok && writesUnredacted(one, line) {
				return true
			}
		}
		return false
	}
	if core.Check(line, nil) == nil {
		return false
	}
	probe := new(redact.Probe)
	core.With([]zapcore.Field{probe.Field()}) // encodes the field and writes nothing
	return probe.Redacted < probe.Encoders
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
