package signedplayback

import (
	"fmt"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/dustin/go-humanize"

	"github.com/signed-playback/caddy-signed-playback/internal/accessrules"
	"github.com/signed-playback/caddy-signed-playback/internal/controlapi"
	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
	"github.com/signed-playback/caddy-signed-playback/internal/option"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/weborigin"
	"github.com/signed-playback/caddy-signed-playback/manifest"
	"github.com/signed-playback/caddy-signed-playback/mediacache"
	"github.com/signed-playback/caddy-signed-playback/token"
)

func init() {
	httpcaddyfile.RegisterHandlerDirective("signed_playback_cache", directive[Cache])
	httpcaddyfile.RegisterDirectiveOrder("signed_playback_cache", httpcaddyfile.After, "encode")
	httpcaddyfile.RegisterHandlerDirective("signed_playback", directive[Gate]) // before the cache
	// After encode, so that encode compresses the response that the gate has
	// changed. Before every directive that responds.
	httpcaddyfile.RegisterDirectiveOrder("signed_playback", httpcaddyfile.After, "encode")
	httpcaddyfile.RegisterHandlerDirective("signed_playback_api", directive[API])
	httpcaddyfile.RegisterDirectiveOrder("signed_playback_api", httpcaddyfile.After, "encode") // and so before the gate
	httpcaddyfile.RegisterHandlerDirective("signed_playback_mint", directive[Mint])
	httpcaddyfile.RegisterDirectiveOrder("signed_playback_mint", httpcaddyfile.After, "encode") // and so after forward_auth
	httpcaddyfile.RegisterGlobalOption("signed_playback", parseApp)
}

// directive reads a directive of a site.
func directive[T any, H interface {
	*T
	caddyhttp.MiddlewareHandler
	caddyfile.Unmarshaler
}](h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	handler := H(new(T))
	return handler, handler.UnmarshalCaddyfile(h.Dispenser)
}

// caddyfileBlocks returns the blocks of the Caddyfile that have options of this module.
func caddyfileBlocks() option.Blocks {
	return option.Blocks{
		Places: []option.Place{
			{Name: "the global option signed_playback, in the block { … } at the top of the Caddyfile", Options: new(App).options},
			{Name: "a video block of the global option signed_playback", Options: new(VideoSettings).videoOptions},
			{Name: "the directive signed_playback in a site", Options: new(Gate).options},
			{Name: "the directive signed_playback_api in a site", Options: new(API).options},
			{Name: "the directive signed_playback_cache in a site", Options: new(Cache).options},
			{Name: "the directive signed_playback_mint in a site", Options: new(Mint).options},
		},
		IsDirective: func(name string) bool {
			_, err := caddy.GetModule("http.handlers." + name)
			return err == nil
		},
	}
}

// readBlock reads the block of a directive or global option, whose name has been consumed.
func readBlock(d *caddyfile.Dispenser, options option.Options) error {
	name := d.Val()
	if d.NextArg() {
		return d.Errf("unexpected argument %q; put the options of %s into a block", d.Val(), name)
	}
	return caddyfileBlocks().Read(d, options)
}

// UnmarshalCaddyfile sets up the gate from Caddyfile tokens. Syntax:
//
//	signed_playback [<matcher>] {
//	    origin_path           <template>
//	    player                [<path to hls.js file>]
//	    downloads             <path glob>...
//	    manifest              <path>
//	    manifest_hosts        <host[:port]>...
//	    manifest_features     steering|reporting...
//	    pass_request_headers  <name>...
//	    pass_response_headers <name>...
//	    ambiguous_paths       refuse|allow
//	    trust_origin_iframe
//	    enforce               on|off
//	    report_only           <check>...
//	}
//
// The default of origin_path is /{video}, of downloads, downloads/*, and of manifest,
// manifest/video.m3u8. Without
// player there is no player page. Without enforce and report_only, the global
// option decides.
func (g *Gate) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the directive's name
	g.Source = fmt.Sprintf("%s:%d", d.File(), d.Line())
	return readBlock(d, g.options())
}

func (g *Gate) options() option.Options {
	return g.Enforcement.options().With(option.Options{
		"origin_path": option.Text(&g.OriginPath, func(template string) error {
			if option.HasPlaceholder(strings.ReplaceAll(template, playbackpath.VideoPlaceholder, "")) {
				return nil // Provision resolves and checks it
			}
			_, err := playbackpath.ParseOriginPath(template)
			return err
		}),
		"player": func(d option.Dispenser) error {
			g.Player = new(PlayerConfig)
			if d.CountRemainingArgs() == 0 {
				return nil
			}
			return option.Text(&g.Player.HLSJS, nil)(d)
		},
		"manifest": option.Text(&g.Manifest, option.Literal(func(string) error {
			_, err := g.resolveManifest()
			return err
		})),
		"manifest_hosts":        option.List(&g.ManifestHosts, option.Parsed(weborigin.ParseManifestHost)),
		"manifest_features":     option.List(&g.ManifestFeatures, option.Parsed(manifest.ParseFeature)),
		"pass_request_headers":  option.List(&g.PassRequestHeaders, option.Parsed(headerpolicy.ParseRequestName)),
		"pass_response_headers": option.List(&g.PassResponseHeaders, option.Parsed(headerpolicy.ParseResponseName)),
		"ambiguous_paths":       ambiguousPathsWords.Read(&g.AmbiguousPaths),
		"trust_origin_iframe":   option.Flag(&g.TrustOriginIframe),
		"downloads":             option.List(&g.Downloads, option.Literal(option.Parsed(playbackpath.ParseGlob))),
	})
}

// UnmarshalCaddyfile sets up the control API from Caddyfile tokens. Syntax:
//
//	signed_playback_api [<matcher>] {
//	    bearer_token <secret>...
//	    auth_key     <email> <key>
//	    account      <id>
//	    console
//	}
//
// There must be at least one credential, bearer_token or auth_key; console needs the
// former. auth_key may be repeated. Without account, the API serves every account id.
// Errors contain no secret.
func (a *API) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the directive's name
	if d.NextArg() {
		return d.Errf("unexpected argument; put the options of signed_playback_api into a block")
	}
	if err := caddyfileBlocks().Read(d, a.options()); err != nil {
		return err
	}
	if len(a.BearerTokens)+len(a.AuthKeys) == 0 {
		return d.WrapErr(controlapi.ErrNoCredential)
	}
	if a.Console && len(a.BearerTokens) == 0 {
		return d.WrapErr(errConsoleWithoutToken)
	}
	return nil
}

func (a *API) options() option.Options {
	return option.Options{
		"bearer_token": func(d option.Dispenser) error {
			a.BearerTokens = d.RemainingArgs()
			if len(a.BearerTokens) == 0 || slices.Contains(a.BearerTokens, "") {
				return d.Errf("bearer_token takes at least one secret, none of them empty")
			}
			return nil
		},
		"auth_key": func(d option.Dispenser) error {
			args := d.RemainingArgs()
			if len(args) != 2 || args[0] == "" || args[1] == "" {
				return d.Errf("auth_key takes an email address and a key, not %d arguments", len(args))
			}
			a.AuthKeys = append(a.AuthKeys, AuthKey{Email: args[0], Key: args[1]})
			return nil
		},
		"account": option.Text(&a.Account, option.Literal(controlapi.CheckAccount)),
		"console": option.Flag(&a.Console),
	}
}

// UnmarshalCaddyfile sets up the app from the tokens of the global option.
// Syntax:
//
//	signed_playback {
//	    key_file            <path>...
//	    jwks_url            <url> [<interval>]
//	    geoip_database      <path>
//	    asn_database        <path>
//	    anonymous_database  <path>
//	    require_signed_urls on|off
//	    allowed_origins     <pattern>...
//	    missing_origin      deny|allow
//	    enforce             on|off
//	    report_only         <check>...
//	    leeway              <duration>
//	    max_token_lifetime  <duration>
//	    audience            <value>...
//	    issuer              <value>...
//	    viewer_claim        <name>
//	    token_cache_size    <size>
//	    public_url          <url>
//	    store               caddy | redis <url>
//	    store_secret        <secret> [<other secret>|plain]...
//	    sessions            on|off
//	    session_timeout     <duration>
//	    max_sessions        <n>
//	    access_rules {
//	        <allow|block> <type> [<value>...]
//	    }
//	    on_session_limit    end_oldest|refuse_new
//	    max_session         <duration>
//	    session_secret      <secret>
//	    session_events      <url>
//	    admission           <url> [on_error allow|deny]
//	    on_sharing          report|revoke
//	    video <id> {
//	        require_signed_urls on|off
//	        allowed_origins     <pattern>...
//	        missing_origin      deny|allow
//	        max_sessions        <n>
//	        access_rules { … }
//	        available_from      <time>
//	        available_until     <time>
//	        enforce             on|off
//	        report_only         <check>...
//	    }
//	}
//
// video may be repeated, with another id. An option that a video block does not
// set keeps its value for all videos.
func (a *App) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the option's name
	return readBlock(d, a.options())
}

func (a *App) options() option.Options {
	return a.sharedOptions().With(a.SessionOptions.options()).With(option.Options{
		"key_file":           option.List(&a.KeyFiles, nil),
		"jwks_url":           a.readJWKSURL,
		"geoip_database":     option.Text(&a.GeoIPDatabase, nil),
		"asn_database":       option.Text(&a.ASNDatabase, nil),
		"anonymous_database": option.Text(&a.AnonymousDatabase, nil),
		"leeway":             optionalDuration(&a.Leeway),
		"max_token_lifetime": duration(&a.MaxTokenLifetime),
		"audience":           option.List(&a.Audience, nil),
		"issuer":             option.List(&a.Issuer, nil),
		"viewer_claim": option.Text(&a.ViewerClaim, option.Literal(func(string) error {
			_, err := a.resolveViewerClaim()
			return err
		})),
		"token_cache_size": option.Size(&a.TokenCacheSize, minTokenCacheSize),
		"public_url":       option.Text(&a.PublicURL, option.Literal(option.Parsed(parsePublicURL))),
		"store":            a.readStore,
		"store_secret":     a.readStoreSecret,
		"video":            a.readVideo,
	})
}

// duration reads a duration in Caddy's format, like 1d12h. It must not be
// negative.
func duration(value *caddy.Duration) option.Reader {
	return option.Amount(value, caddy.ParseDuration, 0, "a duration like 5s or 24h")
}

// optionalDuration is duration for an option that can be zero.
func optionalDuration(value **caddy.Duration) option.Reader {
	return func(d option.Dispenser) error {
		*value = new(caddy.Duration)
		return duration(*value)(d)
	}
}

func parseApp(d *caddyfile.Dispenser, existing any) (any, error) {
	if existing != nil {
		d.Next() // consume the option's name
		return nil, d.Errf("global option %q is repeated; put everything into one block", appID)
	}
	a := new(App)
	if err := a.UnmarshalCaddyfile(d); err != nil {
		return nil, err
	}
	return httpcaddyfile.App{Name: appID, Value: caddyconfig.JSON(a, nil)}, nil
}

func (a *App) readJWKSURL(d option.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) < 1 || len(args) > 2 {
		return d.Errf("jwks_url takes a URL and perhaps an interval, not %d arguments: %q", len(args), args)
	}
	a.JWKSURL = args[0]
	if len(args) == 1 {
		return nil
	}
	interval, err := caddy.ParseDuration(args[1])
	if err != nil || interval < minJWKSInterval {
		return d.Errf("jwks_url: interval %q: want a duration of at least %s, like 5m", args[1], minJWKSInterval)
	}
	a.JWKSInterval = caddy.Duration(interval)
	return nil
}

// readStore reads the store. Its errors never contain the URL, which may include
// a password.
func (a *App) readStore(d option.Dispenser) error {
	args := d.RemainingArgs()
	switch {
	case len(args) == 1 && args[0] == "caddy":
		a.Store = args[0]
	case len(args) == 2 && args[0] == "redis" && args[1] != "":
		a.Store, a.StoreURL = args[0], args[1]
	case len(args) > 0 && (args[0] == "caddy" || args[0] == "redis"):
		return d.Errf("store %s: want `store caddy`, or `store redis <url>` with one URL", args[0])
	case len(args) > 0:
		return d.Errf("store %q: want caddy or redis", args[0])
	default:
		return d.Errf("store takes `caddy`, or `redis` and a URL")
	}
	return nil
}

func (a *App) readStoreSecret(d option.Dispenser) error {
	secrets := d.RemainingArgs()
	if len(secrets) == 0 || slices.Contains(secrets, "") {
		return d.Errf("store_secret takes a secret, and perhaps earlier ones, none of them empty")
	}
	a.StoreSecret, a.EarlierStoreSecrets = secrets[0], secrets[1:]
	return nil
}

func (a *App) readVideo(d option.Dispenser) error {
	var id string
	if err := option.Text(&id, nil)(d); err != nil {
		return err
	}
	if !token.ValidVideoID(id) {
		return d.Errf("video %q: %v", id, playbackpath.ErrVideoID)
	}
	if _, repeated := a.Videos[id]; repeated {
		return d.Errf("video %q is repeated; put its settings into one block", id)
	}
	var own VideoSettings
	if err := caddyfileBlocks().Read(d, own.videoOptions()); err != nil {
		return err
	}
	if a.Videos == nil {
		a.Videos = make(map[string]VideoSettings)
	}
	a.Videos[id] = own
	return nil
}

// videoOptions returns the options of a video block.
func (v *VideoSettings) videoOptions() option.Options {
	check := func(string) error { return new(settings).setSchedule(v.AvailableFrom, v.AvailableUntil) }
	return v.sharedOptions().With(option.Options{
		"available_from":  option.Text(&v.AvailableFrom, check),
		"available_until": option.Text(&v.AvailableUntil, check),
	})
}

// sharedOptions returns the options of a video block that the global block has too,
// for all videos.
func (v *VideoSettings) sharedOptions() option.Options {
	return v.Enforcement.options().With(option.Options{
		"require_signed_urls": option.Switch(&v.RequireSignedURLs),
		"allowed_origins":     option.List(&v.AllowedOrigins, option.Parsed(weborigin.ParsePattern)),
		"access_rules":        v.readAccessRules,
		"missing_origin":      missingOriginWords.Read(&v.MissingOrigin),
		"max_sessions":        option.Count(&v.MaxSessions),
	})
}

// readAccessRules reads a block with a rule in each line. An empty block is no rules.
func (v *VideoSettings) readAccessRules(d option.Dispenser) error {
	if d.NextArg() {
		return d.Errf("access_rules takes a block with a rule in each line, not %q", d.Val())
	}
	rules := []token.AccessRule{}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		rule, err := accessrules.ParseWords(d.Val(), d.RemainingArgs())
		if err != nil {
			return d.WrapErr(fmt.Errorf("access_rules: %w", err))
		}
		rules = append(rules, rule)
		if _, err := accessrules.Compile(caddyconfig.JSON(rules, nil)); err != nil {
			return d.WrapErr(fmt.Errorf("access_rules: %w", err))
		}
	}
	if d.Val() != "}" {
		return d.Errf("access_rules needs a block with a rule in each line, like `block ip.src 192.0.2.0/24`; an empty block is no rules")
	}
	v.AccessRules = caddyconfig.JSON(rules, nil)
	return nil
}

// options returns the options that gates, video blocks and the global block have
// in common.
func (e *Enforcement) options() option.Options {
	check := func() error {
		_, err := e.compile()
		return err
	}
	return option.Options{
		"enforce":     option.Switch(&e.Enforce).Then(check),
		"report_only": option.List(&e.ReportOnly, nil).Then(check),
	}
}

// UnmarshalCaddyfile sets up the media cache from Caddyfile tokens. Syntax:
//
//	signed_playback_cache [<matcher>] {
//	    memory       <size>
//	    disk         <path> <size>
//	    max_object   <size>
//	    segment_ttl  <duration>
//	    manifest_ttl <duration>
//	    error_ttl    <duration>
//	    query        <name>...
//	}
//
// The block is optional.
func (c *Cache) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the directive's name
	return readBlock(d, c.options())
}

func (c *Cache) options() option.Options {
	return option.Options{
		"memory":       option.Size(&c.Memory, minCacheMemory),
		"disk":         c.readDisk,
		"max_object":   option.Size(&c.MaxObject, 1),
		"segment_ttl":  optionalDuration(&c.SegmentTTL),
		"manifest_ttl": optionalDuration(&c.ManifestTTL),
		"error_ttl":    optionalDuration(&c.ErrorTTL),
		"query":        option.List(&c.Query, mediacache.CheckQuery),
	}
}

func (c *Cache) readDisk(d option.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) != 2 {
		return d.Errf("disk takes a path and a size, like /var/cache/media 100GiB, not %q", args)
	}
	size, err := humanize.ParseBytes(args[1])
	if err != nil {
		return d.Errf("disk %q: size %q: want a size like 100GiB", args[0], args[1])
	}
	c.Disk = &CacheDisk{Path: args[0], Size: size}
	if _, err := c.Disk.check(); err != nil {
		return d.WrapErr(err)
	}
	return nil
}

// UnmarshalCaddyfile sets up the links for users from Caddyfile tokens. Syntax:
//
//	signed_playback_mint [<matcher>] {
//	    video  <id, with placeholders>
//	    uid    <viewer, with placeholders>
//	    exp    <duration>
//	    to     iframe|manifest
//	    climit <n>
//	    rules  <json>
//	}
//
// video and uid are required.
func (m *Mint) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the directive's name
	if err := readBlock(d, m.options()); err != nil {
		return err
	}
	if err := m.checkRequired(); err != nil {
		return d.WrapErr(err)
	}
	return nil
}

func (m *Mint) options() option.Options {
	options := option.Options{
		"video":  option.Text(&m.Video, nil),
		"uid":    option.Text(&m.UID, nil),
		"exp":    duration(&m.Exp),
		"to":     option.Text(&m.To, nil),
		"climit": option.Count(&m.Climit),
		"rules": func(d option.Dispenser) error {
			var text string
			err := option.Text(&text, nil)(d)
			m.Rules = []byte(text)
			return err
		},
	}
	for name, read := range options {
		options[name] = read.Then(m.check)
	}
	return options
}

// Interface guards
var (
	_ caddyfile.Unmarshaler = (*Gate)(nil)
	_ caddyfile.Unmarshaler = (*API)(nil)
	_ caddyfile.Unmarshaler = (*App)(nil)
)
