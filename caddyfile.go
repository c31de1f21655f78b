package signedplayback

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
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
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/weborigin"
	"github.com/signed-playback/caddy-signed-playback/manifest"
	"github.com/signed-playback/caddy-signed-playback/mediacache"
	"github.com/signed-playback/caddy-signed-playback/token"
)

func init() {
	httpcaddyfile.RegisterHandlerDirective("signed_playback_cache", parseCache)
	httpcaddyfile.RegisterDirectiveOrder("signed_playback_cache", httpcaddyfile.After, "encode")
	httpcaddyfile.RegisterHandlerDirective("signed_playback", parseGate) // before the cache
	// After encode, so that encode compresses the response that the gate has
	// changed. Before every directive that responds.
	httpcaddyfile.RegisterDirectiveOrder("signed_playback", httpcaddyfile.After, "encode")
	httpcaddyfile.RegisterHandlerDirective("signed_playback_api", parseAPI)
	httpcaddyfile.RegisterDirectiveOrder("signed_playback_api", httpcaddyfile.After, "encode") // and so before the gate
	httpcaddyfile.RegisterHandlerDirective("signed_playback_mint", parseMint)
	httpcaddyfile.RegisterDirectiveOrder("signed_playback_mint", httpcaddyfile.After, "encode") // and so after forward_auth
	httpcaddyfile.RegisterGlobalOption("signed_playback", parseApp)
}

// option parses one subdirective, whose name has been consumed.
type option func(d *caddyfile.Dispenser) error

// optionPlace is a block of the Caddyfile that has options of this module.
type optionPlace struct {
	name    string
	options func() map[string]option
}

func optionPlaces() []optionPlace {
	return []optionPlace{
		{"the global option signed_playback, in the block { … } at the top of the Caddyfile", new(App).options},
		{"a video block of the global option signed_playback", new(VideoSettings).videoOptions},
		{"the directive signed_playback in a site", new(Gate).options},
		{"the directive signed_playback_api in a site", new(API).options},
		{"the directive signed_playback_cache in a site", new(Cache).options},
		{"the directive signed_playback_mint in a site", new(Mint).options},
	}
}

// parseBlock parses each subdirective of a block. Unknown and repeated ones are
// errors: an option that is silently ignored may be one that restricts access.
func parseBlock(d *caddyfile.Dispenser, options map[string]option) error {
	seen := make(map[string]bool)
	previous := ""
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		name := d.Val()
		parse, known := options[name]
		if name == "{" {
			return d.Errf("unexpected %q: %s takes no block", name, previous)
		}
		previous = name
		if !known {
			return d.Errf("unrecognized option %q%s; known are %s", name, hintAt(name, options), knownOptions(options))
		}
		if seen[name] && name != "video" && name != "auth_key" {
			return d.Errf("option %q is repeated; give it once", name)
		}
		seen[name] = true
		if err := parse(d); err != nil {
			return err
		}
	}
	return nil
}

func knownOptions(options map[string]option) string {
	return strings.Join(slices.Sorted(maps.Keys(options)), ", ")
}

// hintAt says where a name that a block does not know belongs, or what the user
// has probably meant by it.
func hintAt(name string, here map[string]option) string {
	places := make(map[string][]string) // by option
	for _, place := range optionPlaces() {
		for known := range place.options() {
			places[known] = append(places[known], place.name)
		}
	}
	_, notDirective := caddy.GetModule("http.handlers." + name)
	meant := closest(name, append(slices.Sorted(maps.Keys(here)), slices.Sorted(maps.Keys(places))...)) // at the same distance, one of here
	belongs := func(option string) string { return "it belongs to " + strings.Join(places[option], ", or to ") }
	switch {
	case places[name] != nil:
		return ": " + belongs(name)
	case notDirective == nil:
		return ": it is a directive of Caddy and belongs to a site, outside of this block"
	case here[meant] != nil:
		return fmt.Sprintf(": did you mean %q?", meant)
	case meant != "":
		return fmt.Sprintf(": did you mean %q? If so, %s", meant, belongs(meant))
	default:
		return ""
	}
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
	if d.NextArg() {
		return d.Errf("unexpected argument %q; put the options of signed_playback into a block", d.Val())
	}
	return parseBlock(d, g.options())
}

func (g *Gate) options() map[string]option {
	options := map[string]option{
		"origin_path": func(d *caddyfile.Dispenser) error {
			if err := oneArg(d, &g.OriginPath); err != nil {
				return err
			}
			if hasPlaceholder(strings.ReplaceAll(g.OriginPath, playbackpath.VideoPlaceholder, "")) {
				return nil // Provision resolves and checks it
			}
			_, err := playbackpath.ParseOriginPath(g.OriginPath)
			return located(d, err)
		},
		"player": func(d *caddyfile.Dispenser) error {
			g.Player = new(PlayerConfig)
			if d.CountRemainingArgs() == 0 {
				return nil
			}
			return oneArg(d, &g.Player.HLSJS)
		},
		"manifest": func(d *caddyfile.Dispenser) error {
			if err := oneArg(d, &g.Manifest); err != nil || hasPlaceholder(g.Manifest) {
				return err // Provision resolves and checks placeholders
			}
			_, err := g.resolveManifest()
			return located(d, err)
		},
		"manifest_hosts":        parsedArgs(&g.ManifestHosts, weborigin.ParseManifestHost),
		"manifest_features":     parsedArgs(&g.ManifestFeatures, manifest.ParseFeature),
		"pass_response_headers": parsedArgs(&g.PassResponseHeaders, headerpolicy.ParseResponseName),
		"ambiguous_paths":       ambiguousPathsWords.read(&g.AmbiguousPaths),
		"trust_origin_iframe": func(d *caddyfile.Dispenser) error {
			g.TrustOriginIframe = true
			return noArgs(d)
		},
		"pass_request_headers": parsedArgs(&g.PassRequestHeaders, headerpolicy.ParseRequestName),
		"downloads": func(d *caddyfile.Dispenser) error {
			return someArgs(d, &g.Downloads, func(glob string) error {
				if hasPlaceholder(glob) {
					return nil // Provision resolves and checks it
				}
				_, err := playbackpath.ParseGlob(glob)
				return err
			})
		},
	}
	maps.Copy(options, g.Enforcement.options())
	return options
}

func parseGate(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	g := new(Gate)
	return g, g.UnmarshalCaddyfile(h.Dispenser)
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
	if err := parseBlock(d, a.options()); err != nil {
		return err
	}
	if len(a.BearerTokens)+len(a.AuthKeys) == 0 {
		return located(d, controlapi.ErrNoCredential)
	}
	if a.Console && len(a.BearerTokens) == 0 {
		return located(d, errConsoleWithoutToken)
	}
	return nil
}

func (a *API) options() map[string]option {
	return map[string]option{
		"bearer_token": func(d *caddyfile.Dispenser) error {
			a.BearerTokens = d.RemainingArgs()
			if len(a.BearerTokens) == 0 || slices.Contains(a.BearerTokens, "") {
				return d.Err("bearer_token takes at least one secret, none of them empty")
			}
			return nil
		},
		"auth_key": func(d *caddyfile.Dispenser) error {
			args := d.RemainingArgs()
			if len(args) != 2 || args[0] == "" || args[1] == "" {
				return d.Errf("auth_key takes an email address and a key, not %d arguments", len(args))
			}
			a.AuthKeys = append(a.AuthKeys, AuthKey{Email: args[0], Key: args[1]})
			return nil
		},
		"account": func(d *caddyfile.Dispenser) error {
			if err := oneArg(d, &a.Account); err != nil || hasPlaceholder(a.Account) {
				return err // Provision resolves and checks placeholders
			}
			return located(d, controlapi.CheckAccount(a.Account))
		},
		"console": func(d *caddyfile.Dispenser) error {
			a.Console = true
			return noArgs(d)
		},
	}
}

func parseAPI(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	a := new(API)
	return a, a.UnmarshalCaddyfile(h.Dispenser)
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
	if d.NextArg() {
		return d.Errf("unexpected argument %q; put the options of signed_playback into a block", d.Val())
	}
	return parseBlock(d, a.options())
}

func (a *App) options() map[string]option {
	options := a.sharedOptions()
	options["key_file"] = func(d *caddyfile.Dispenser) error { return someArgs(d, &a.KeyFiles, nil) }
	options["jwks_url"] = a.parseJWKSURL
	options["geoip_database"] = func(d *caddyfile.Dispenser) error { return oneArg(d, &a.GeoIPDatabase) }
	options["asn_database"] = func(d *caddyfile.Dispenser) error { return oneArg(d, &a.ASNDatabase) }
	options["anonymous_database"] = func(d *caddyfile.Dispenser) error { return oneArg(d, &a.AnonymousDatabase) }
	options["leeway"] = func(d *caddyfile.Dispenser) error {
		a.Leeway = new(caddy.Duration)
		return durationArg(d, a.Leeway)
	}
	options["max_token_lifetime"] = func(d *caddyfile.Dispenser) error { return durationArg(d, &a.MaxTokenLifetime) }
	options["audience"] = func(d *caddyfile.Dispenser) error { return someArgs(d, &a.Audience, nil) }
	options["issuer"] = func(d *caddyfile.Dispenser) error { return someArgs(d, &a.Issuer, nil) }
	options["viewer_claim"] = func(d *caddyfile.Dispenser) error {
		if err := oneArg(d, &a.ViewerClaim); err != nil || hasPlaceholder(a.ViewerClaim) {
			return err // Provision resolves and checks placeholders
		}
		_, err := a.resolveViewerClaim()
		return located(d, err)
	}
	options["token_cache_size"] = func(d *caddyfile.Dispenser) error { return sizeArg(d, minTokenCacheSize, &a.TokenCacheSize) }
	options["public_url"] = func(d *caddyfile.Dispenser) error {
		if err := oneArg(d, &a.PublicURL); err != nil || hasPlaceholder(a.PublicURL) {
			return err // Provision resolves and checks placeholders
		}
		_, err := parsePublicURL(a.PublicURL)
		return located(d, err)
	}
	options["store"] = a.parseStore
	options["store_secret"] = a.parseStoreSecret
	options["video"] = a.parseVideo
	maps.Copy(options, a.SessionOptions.options())
	return options
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

func (a *App) parseJWKSURL(d *caddyfile.Dispenser) error {
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

// parseStore reads the store. Its errors never contain the URL, which may include
// a password.
func (a *App) parseStore(d *caddyfile.Dispenser) error {
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
		return d.Err("store takes `caddy`, or `redis` and a URL")
	}
	return nil
}

func (a *App) parseStoreSecret(d *caddyfile.Dispenser) error {
	secrets := d.RemainingArgs()
	if len(secrets) == 0 || slices.Contains(secrets, "") {
		return d.Err("store_secret takes a secret, and perhaps earlier ones, none of them empty")
	}
	a.StoreSecret, a.EarlierStoreSecrets = secrets[0], secrets[1:]
	return nil
}

// secretArg reads a secret, which no error contains.
func secretArg(d *caddyfile.Dispenser, value *string) error {
	name := d.Val()
	args := d.RemainingArgs()
	if len(args) != 1 || args[0] == "" {
		return d.Errf("%s takes one secret, not \"%d\"", name, len(args))
	}
	*value = args[0]
	return nil
}

func (a *App) parseVideo(d *caddyfile.Dispenser) error {
	var id string
	if err := oneArg(d, &id); err != nil {
		return err
	}
	if !token.ValidVideoID(id) {
		return d.Errf("video %q: %v", id, errVideoID)
	}
	if _, repeated := a.Videos[id]; repeated {
		return d.Errf("video %q is repeated; put its settings into one block", id)
	}
	var own VideoSettings
	if err := parseBlock(d, own.videoOptions()); err != nil {
		return err
	}
	if a.Videos == nil {
		a.Videos = make(map[string]VideoSettings)
	}
	a.Videos[id] = own
	return nil
}

// videoOptions returns the options of a video block.
func (v *VideoSettings) videoOptions() map[string]option {
	options := v.sharedOptions()
	for name, value := range map[string]*string{"available_from": &v.AvailableFrom, "available_until": &v.AvailableUntil} {
		options[name] = func(d *caddyfile.Dispenser) error {
			if err := oneArg(d, value); err != nil {
				return err
			}
			return located(d, new(settings).setSchedule(v.AvailableFrom, v.AvailableUntil))
		}
	}
	return options
}

// sharedOptions returns the options of a video block that the global block has too,
// for all videos.
func (v *VideoSettings) sharedOptions() map[string]option {
	options := map[string]option{
		"require_signed_urls": func(d *caddyfile.Dispenser) error { return switchArg(d, &v.RequireSignedURLs) },
		"allowed_origins":     parsedArgs(&v.AllowedOrigins, weborigin.ParsePattern),
		"access_rules":        v.parseAccessRules,
		"missing_origin":      missingOriginWords.read(&v.MissingOrigin),
		"max_sessions":        func(d *caddyfile.Dispenser) error { return countArg(d, &v.MaxSessions) },
	}
	maps.Copy(options, v.Enforcement.options())
	return options
}

// parseAccessRules reads a block with a rule in each line. An empty block is no rules.
func (v *VideoSettings) parseAccessRules(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		return d.Errf("access_rules takes a block with a rule in each line, not %q", d.Val())
	}
	rules := []token.AccessRule{}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		rule, err := parseAccessRule(d.Val(), d.RemainingArgs())
		if err != nil {
			return located(d, err)
		}
		rules = append(rules, rule)
		if _, err := accessrules.Compile(caddyconfig.JSON(rules, nil)); err != nil {
			return located(d, fmt.Errorf("access_rules: %w", err))
		}
	}
	if d.Val() != "}" {
		return d.Err("access_rules needs a block with a rule in each line, like `block ip.src 192.0.2.0/24`; an empty block is no rules")
	}
	v.AccessRules = caddyconfig.JSON(rules, nil)
	return nil
}

// parseAccessRule reads the words of a rule. The values belong to its type.
func parseAccessRule(action string, words []string) (rule token.AccessRule, err error) {
	if len(words) == 0 {
		return rule, fmt.Errorf("access_rules: %q: want allow or block, a type and its values, like `block ip.src 192.0.2.0/24`", action)
	}
	rule.Action, rule.Type = action, words[0]
	values := words[1:]
	if needed := []string{"ip.src", "ip.geoip.country", "ip.geoip.asnum"}; len(values) == 0 && slices.Contains(needed, rule.Type) {
		return rule, fmt.Errorf("access_rules: %s needs at least one value", rule.Type)
	}
	switch rule.Type {
	case "ip.src":
		rule.IP = values
	case "ip.geoip.country":
		rule.Country = values
	case "ip.geoip.asnum":
		for _, value := range values {
			number, err := strconv.ParseUint(value, 10, 32)
			if err != nil {
				return rule, fmt.Errorf("access_rules: ip.geoip.asnum %q: want numbers like 64500", value)
			}
			rule.ASN = append(rule.ASN, uint32(number))
		}
	case "ip.anonymous":
		if len(values) > 0 {
			rule.Kinds = values
		}
	case "any":
		if len(values) > 0 {
			return rule, fmt.Errorf("access_rules: any takes no values, not %q", values)
		}
	}
	return rule, nil
}

// options returns the options that gates, video blocks and the global block have
// in common.
func (e *Enforcement) options() map[string]option {
	check := func(d *caddyfile.Dispenser) error {
		_, err := e.compile()
		return located(d, err)
	}
	return map[string]option{
		"enforce": func(d *caddyfile.Dispenser) error {
			if err := switchArg(d, &e.Enforce); err != nil {
				return err
			}
			return check(d)
		},
		"report_only": func(d *caddyfile.Dispenser) error {
			if err := someArgs(d, &e.ReportOnly, nil); err != nil {
				return err
			}
			return check(d)
		},
	}
}

// switchArg reads on or off.
func switchArg(d *caddyfile.Dispenser, value **bool) error {
	name := d.Val()
	var word string
	if err := oneArg(d, &word); err != nil {
		return err
	}
	if word != "on" && word != "off" {
		return d.Errf("%s %q: want on or off", name, word)
	}
	*value = new(word == "on")
	return nil
}

// oneArg reads the one argument of an option.
func oneArg(d *caddyfile.Dispenser, value *string) error {
	name := d.Val()
	args := d.RemainingArgs()
	if len(args) > 1 {
		return d.Errf("%s takes one argument, not %d: %q; quote a value that contains a space", name, len(args), args)
	}
	if len(args) == 0 || args[0] == "" {
		return d.Errf("%s needs an argument; a variable {$NAME} that is not set gives none", name)
	}
	*value = args[0]
	return nil
}

// twoWords is an option with one of two words as its value. The first one is the default.
type twoWords struct{ option, first, second string }

// isSecond reports whether a value is the second word. An empty value means the first.
func (w twoWords) isSecond(value string) (bool, error) {
	switch value {
	case "", w.first:
		return false, nil
	case w.second:
		return true, nil
	}
	return false, fmt.Errorf("%s %q: want %s or %s", w.option, value, w.first, w.second)
}

// read returns a function that reads the option from a Caddyfile.
func (w twoWords) read(value *string) option {
	return func(d *caddyfile.Dispenser) error {
		if err := oneArg(d, value); err != nil {
			return err
		}
		_, err := w.isSecond(*value)
		return located(d, err)
	}
}

// noArgs refuses arguments of an option that is on where it is written.
func noArgs(d *caddyfile.Dispenser) error {
	name := d.Val()
	if d.NextArg() {
		return d.Errf("%s takes no argument, not %q", name, d.Val())
	}
	return nil
}

// someArgs reads the arguments of an option, at least one. It calls check, unless
// nil, for each.
func someArgs(d *caddyfile.Dispenser, values *[]string, check func(string) error) error {
	name := d.Val()
	args := d.RemainingArgs()
	if len(args) == 0 {
		return d.Errf("%s takes at least one argument", name)
	}
	for i, arg := range args {
		if arg == "" {
			return d.Errf("%s: argument %d is empty", name, i+1)
		}
		if slices.Contains(args[:i], arg) {
			return d.Errf("%s: %q is repeated", name, arg)
		}
		if check == nil {
			continue
		}
		if err := check(arg); err != nil {
			return located(d, err)
		}
	}
	*values = args
	return nil
}

// parsedArgs is an option whose arguments, at least one, must parse.
func parsedArgs[T any](values *[]string, parse func(string) (T, error)) option {
	return func(d *caddyfile.Dispenser) error {
		return someArgs(d, values, func(arg string) error {
			_, err := parse(arg)
			return err
		})
	}
}

// durationArg reads a duration in Caddy's format, like 1d12h. It must not be
// negative.
func durationArg(d *caddyfile.Dispenser, value *caddy.Duration) error {
	return amountArg(d, value, caddy.ParseDuration, 0, "a duration like 5s or 24h")
}

// countArg reads a number of at least 1.
func countArg(d *caddyfile.Dispenser, value *int) error {
	return amountArg(d, value, strconv.Atoi, 1, "a number of at least 1")
}

// amountArg reads an argument that is at least least. want describes it.
func amountArg[T, U ~int | ~int64](d *caddyfile.Dispenser, value *T, parse func(string) (U, error), least U, want string) error {
	name := d.Val()
	var text string
	if err := oneArg(d, &text); err != nil {
		return err
	}
	amount, err := parse(text)
	if err != nil || amount < least {
		return d.Errf("%s %q: want %s", name, text, want)
	}
	*value = T(amount)
	return nil
}

// sizeArg reads a number of bytes, like 128MiB, of at least minimum.
func sizeArg(d *caddyfile.Dispenser, minimum uint64, value *uint64) error {
	name := d.Val()
	var text string
	if err := oneArg(d, &text); err != nil {
		return err
	}
	size, err := humanize.ParseBytes(text)
	if err != nil || size < minimum {
		return d.Errf("%s %q: want a size like 128MiB, at least %s", name, text, humanize.IBytes(minimum))
	}
	*value = size
	return nil
}

// located adds file and line to an error.
func located(d *caddyfile.Dispenser, err error) error {
	if err == nil {
		return nil
	}
	return d.WrapErr(err)
}

func hasPlaceholder(s string) bool { return strings.Contains(s, "{") }

// Interface guards
var (
	_ caddyfile.Unmarshaler = (*Gate)(nil)
	_ caddyfile.Unmarshaler = (*API)(nil)
	_ caddyfile.Unmarshaler = (*App)(nil)
)

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
	if d.NextArg() {
		return d.Errf("unexpected argument %q; put the options of signed_playback_cache into a block", d.Val())
	}
	return parseBlock(d, c.options())
}

func (c *Cache) options() map[string]option {
	ttl := func(value **caddy.Duration) option {
		return func(d *caddyfile.Dispenser) error {
			*value = new(caddy.Duration)
			return durationArg(d, *value)
		}
	}
	return map[string]option{
		"memory":       func(d *caddyfile.Dispenser) error { return sizeArg(d, minCacheMemory, &c.Memory) },
		"disk":         c.parseDisk,
		"max_object":   func(d *caddyfile.Dispenser) error { return sizeArg(d, 1, &c.MaxObject) },
		"segment_ttl":  ttl(&c.SegmentTTL),
		"manifest_ttl": ttl(&c.ManifestTTL),
		"error_ttl":    ttl(&c.ErrorTTL),
		"query":        func(d *caddyfile.Dispenser) error { return someArgs(d, &c.Query, mediacache.CheckQuery) },
	}
}

func (c *Cache) parseDisk(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) != 2 {
		return d.Errf("disk takes a path and a size, like /var/cache/media 100GiB, not %q", args)
	}
	size, err := humanize.ParseBytes(args[1])
	if err != nil {
		return d.Errf("disk %q: size %q: want a size like 100GiB", args[0], args[1])
	}
	c.Disk = &CacheDisk{Path: args[0], Size: size}
	_, err = c.Disk.check()
	return located(d, err)
}

func parseCache(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	c := new(Cache)
	return c, c.UnmarshalCaddyfile(h.Dispenser)
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
	if d.NextArg() {
		return d.Errf("unexpected argument %q; put the options of signed_playback_mint into a block", d.Val())
	}
	if err := parseBlock(d, m.options()); err != nil {
		return err
	}
	return located(d, m.checkRequired())
}

func (m *Mint) options() map[string]option {
	options := map[string]option{
		"video":  func(d *caddyfile.Dispenser) error { return oneArg(d, &m.Video) },
		"uid":    func(d *caddyfile.Dispenser) error { return oneArg(d, &m.UID) },
		"exp":    func(d *caddyfile.Dispenser) error { return durationArg(d, &m.Exp) },
		"to":     func(d *caddyfile.Dispenser) error { return oneArg(d, &m.To) },
		"climit": func(d *caddyfile.Dispenser) error { return countArg(d, &m.Climit) },
		"rules": func(d *caddyfile.Dispenser) error {
			var text string
			err := oneArg(d, &text)
			m.Rules = []byte(text)
			return err
		},
	}
	for name, parse := range options {
		options[name] = func(d *caddyfile.Dispenser) error {
			if err := parse(d); err != nil {
				return err
			}
			return located(d, m.check())
		}
	}
	return options
}

func parseMint(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	m := new(Mint)
	return m, m.UnmarshalCaddyfile(h.Dispenser)
}
