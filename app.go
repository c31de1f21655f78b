package signedplayback

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/certmagic"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/admission"
	"github.com/signed-playback/caddy-signed-playback/internal/geo"
	"github.com/signed-playback/caddy-signed-playback/internal/manifestbody"
	"github.com/signed-playback/caddy-signed-playback/internal/metrics"
	"github.com/signed-playback/caddy-signed-playback/internal/reportonly"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/internal/verification"
	"github.com/signed-playback/caddy-signed-playback/internal/worklimit"
	"github.com/signed-playback/caddy-signed-playback/token"
)

func init() {
	caddy.RegisterModule(new(App))
}

const (
	appID = "signed_playback"

	defaultLeeway       = 5 * time.Second
	defaultJWKSInterval = 5 * time.Minute
	minJWKSInterval     = time.Second
)

// App is the configuration and state that all gates of a server share: keys, geo
// database, settings of videos, and the store of the control API.
type App struct {
	// Files with verification keys: a JWKS, a JWK, PEM (PKIX, PKCS#1, PKCS#8 or
	// a certificate), or the base64-wrapped `jwk` or `pem` that the keys API
	// returns. Private halves are dropped at load. A key without a `kid` takes
	// the name of its file without the ending. Placeholders are resolved.
	KeyFiles []string `json:"key_file,omitempty"`

	// The http or https URL of a JWKS. It is loaded at start and refreshed in the
	// background. If that fails, the last good set stays in force. A key in
	// `key_file` wins over one with the same `kid` here. Placeholders are
	// resolved.
	JWKSURL string `json:"jwks_url,omitempty"`

	// How often the JWKS is refreshed, at least every second. Default: `5m`.
	JWKSInterval caddy.Duration `json:"jwks_interval,omitempty"`

	// A geo database in MaxMind DB format, with the country as
	// `country.iso_code` or `country_code`, for rules of type
	// `ip.geoip.country`. It is loaded into memory, and again when the file
	// changes. Placeholders are resolved. Default: none, so a viewer whose
	// token has a country rule is refused.
	GeoIPDatabase string `json:"geoip_database,omitempty"`

	// A database of autonomous systems in MaxMind DB format, with the number as
	// `autonomous_system_number` or `asn`, for rules of type `ip.geoip.asnum`. It
	// is loaded as `geoip_database` is. Default: none, so a viewer whose token has
	// such a rule is refused.
	ASNDatabase string `json:"asn_database,omitempty"`

	// MaxMind's Anonymous IP or Anonymous Plus database, for rules of type
	// `ip.anonymous`. It is loaded as `geoip_database` is. Default: none, so a
	// viewer whose token has such a rule is refused.
	AnonymousDatabase string `json:"anonymous_database,omitempty"`

	// Memory for tokens whose signature has been verified, in bytes. Default:
	// 128 MiB, or a quarter of the memory limit of the process (GOMEMLIMIT, or
	// that of the container), if that is less. A reload that changes the size
	// empties the cache.
	TokenCacheSize uint64 `json:"token_cache_size,omitempty"`

	// The http or https URL of the gate, which the control API puts before
	// playback paths: `https://media.example.com`. It has no query and no
	// fragment. Default: none, so playback paths have no host. Placeholders are
	// resolved.
	PublicURL string `json:"public_url,omitempty"`

	// Where the control API keeps keys and settings: `caddy`, the storage of the
	// server itself, or `redis`. Default: `caddy`.
	Store string `json:"store,omitempty"`

	// The address of the Redis or Valkey that a fleet shares:
	// redis://[user:password@]host:port/database, rediss:// for TLS.
	// Placeholders are resolved.
	StoreURL string `json:"store_url,omitempty"`

	// A secret that authenticates what is in the store and encrypts the signing
	// key, so that write access to the store alone neither makes a key nor changes
	// a setting: at least 16 characters, the same on all nodes. An object that it
	// does not authenticate is damaged, and what depends on it is refused.
	// Placeholders are resolved. Default: none, so objects have a checksum only.
	// Permitted: `{env.STORE_SECRET}`. Not permitted: `changeme`.
	StoreSecret string `json:"store_secret,omitempty"`

	// Earlier values of `store_secret`, whose objects are accepted and rewritten
	// with the present one, or `plain` for objects without one. Default: none.
	EarlierStoreSecrets []string `json:"earlier_store_secrets,omitempty"`

	// Settings for videos without settings of their own.
	VideoSettings

	// Playback sessions.
	SessionOptions

	// How far in the future the claim `nbf` may be, for signers whose clocks are
	// ahead. `exp` is exact. Default: `5s`.
	Leeway *caddy.Duration `json:"leeway,omitempty"`

	// Refuse a token whose `exp` is further in the future than this. Default:
	// no limit.
	MaxTokenLifetime caddy.Duration `json:"max_token_lifetime,omitempty"`

	// Accept tokens with one of these values in the claim `aud` only. Tokens that
	// the control API mints get the first one. Default: the claim is ignored.
	// Placeholders are resolved. Permitted: `https://media.example.com`, or any
	// other text. With `jwks_url`, set it: an identity provider signs tokens for
	// all of its programs with the same keys.
	Audience []string `json:"audience,omitempty"`

	// The same for the claim `iss`: `https://id.example.com`.
	Issuer []string `json:"issuer,omitempty"`

	// The claim that names the viewer, for revocations and session limits. Tokens
	// that the control API mints have it, too. Default: `uid`. Placeholders are
	// resolved. Permitted: `email`, `https://example.com/viewer`. Not permitted: a
	// claim with another meaning, such as `sub` or `jti`, or almost its name.
	ViewerClaim string `json:"viewer_claim,omitempty"`

	// Settings of single videos, by video id. An option that a video does not set
	// has the value for all videos.
	Videos map[string]VideoSettings `json:"video,omitempty"`

	logger        *zap.Logger
	now           func() time.Time // tests set their own
	metrics       *metrics.Metrics
	policy        token.Policy
	state         *sharedState
	storage       certmagic.Storage
	keys          *verification.Keyring
	remoteKeys    *remoteKeys // of keys, nil without jwks_url
	verifier      *verification.Verifier
	lookups       *worklimit.Networks // of videos, without a token
	manifests     *manifestbody.Memory
	geo           *geo.Databases
	defaults      settings
	authority     *sessions.Source   // nil with sessions off
	sessionPolicy sessions.Policy    // of the state's tracker
	enforcement   reportonly.Setting // of gates and videos without a setting
	revokeShared  bool
	eventsURL     *url.URL        // of session_events, nil for none
	eventsKey     []byte          // that signs them, and questions of admission; nil for none
	admission     *admission.Desk // nil without the option
	videos        map[string]settings
	publicURL     string
	caches        []*Cache                   // of this config
	checked       map[*caddyhttp.Server]bool // by checkServer
	gateManifests []string                   // of this config's gates, each once
	linksLead     bool                       // to the manifest: by a signed_playback_mint
	stop          context.CancelFunc
}

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  appID,
		New: func() caddy.Module { return new(App) },
	}
}

// Provision loads keys and geo databases and compiles the settings.
func (a *App) Provision(ctx caddy.Context) error {
	a.logger = ctx.Logger()
	a.now = time.Now
	a.metrics = metrics.Process()
	a.manifests = processManifestMemory()
	a.lookups = worklimit.NewNetworks(lookupRate, lookupBurst)
	if err := a.metrics.Register(ctx.GetMetricsRegistry()); err != nil {
		return err
	}
	for _, provision := range []func() error{
		a.provisionPolicy, a.provisionSettings, a.provisionSessions, a.provisionPublicURL, func() error { return a.provisionState(ctx) },
		a.provisionSessionSecret, func() error { return a.provisionAdmission(ctx) }, a.provisionKeys, a.provisionVerifier, a.provisionDatabases,
	} {
		if err := provision(); err != nil {
			return err
		}
	}
	a.warnOfExposure()
	return registerGauges(ctx.GetMetricsRegistry(), a)
}

func (a *App) provisionDatabases() error {
	a.geo = geo.New(a.logger)
	for fact, configured := range a.databases() {
		if configured == "" {
			continue
		}
		path, err := resolve(configured)
		if err != nil {
			return fmt.Errorf("%s: %w", geo.Fact(fact).Option(), err)
		}
		if err := a.geo.Open(geo.Fact(fact), path); err != nil {
			return fmt.Errorf("%s %w", geo.Fact(fact).Option(), err)
		}
	}
	return nil
}

// databases are the options that name the databases of facts.
func (a *App) databases() [geo.FactCount]string {
	return [...]string{geo.Country: a.GeoIPDatabase, geo.ASN: a.ASNDatabase, geo.Anonymous: a.AnonymousDatabase}
}

func (a *App) provisionPolicy() error {
	a.policy = token.Policy{Leeway: defaultLeeway, MaxLifetime: time.Duration(a.MaxTokenLifetime)}
	if a.Leeway != nil {
		a.policy.Leeway = time.Duration(*a.Leeway)
	}
	if a.policy.Leeway < 0 {
		return fmt.Errorf("leeway %s is negative", a.policy.Leeway)
	}
	if a.policy.MaxLifetime < 0 {
		return fmt.Errorf("max_token_lifetime %s is negative", a.policy.MaxLifetime)
	}
	var err error
	if a.policy.ViewerClaim, err = a.resolveViewerClaim(); err != nil {
		return err
	}
	if a.policy.Audience, err = resolveAll("audience", a.Audience); err != nil {
		return err
	}
	if a.policy.Issuer, err = resolveAll("issuer", a.Issuer); err != nil {
		return err
	}
	if a.JWKSURL != "" && len(a.Audience) == 0 {
		a.logger.Warn("jwks_url without audience: every token that these keys sign opens the video that its sub names, also a token for another program; set audience")
	}
	return nil
}

func (a *App) resolveViewerClaim() (token.ViewerClaim, error) {
	name, err := resolve(a.ViewerClaim)
	if err == nil && a.ViewerClaim == "" {
		return token.ViewerClaim{}, nil
	}
	var viewer token.ViewerClaim
	if err == nil {
		viewer, err = token.NewViewerClaim(name)
	}
	if err != nil {
		return token.ViewerClaim{}, fmt.Errorf("viewer_claim %w", err)
	}
	return viewer, nil
}

func (a *App) provisionPublicURL() error {
	address, err := resolve(a.PublicURL)
	if err != nil {
		return fmt.Errorf("public_url: %w", err)
	}
	if address == "" {
		return nil
	}
	a.publicURL, err = parsePublicURL(address)
	return err
}

// parsePublicURL parses the option public_url.
func parsePublicURL(address string) (string, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" ||
		u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return "", fmt.Errorf("public_url %q: want an http or https URL like https://media.example.com", address)
	}
	return strings.TrimSuffix(u.String(), "/"), nil
}

// resolve replaces {env.*} and {file.*}. An empty or unknown placeholder is an
// error, because an option that silently becomes empty is off.
func resolve(value string) (string, error) {
	resolved, err := caddy.NewReplacer().ReplaceOrErr(value, true, true)
	if err != nil {
		return "", fmt.Errorf("%q: %w; {env.NAME} is a variable in the environment of the server's start", value, err)
	}
	return resolved, nil
}

// resolveAll resolves the values of an option, none of which may be empty.
func resolveAll(option string, values []string) ([]string, error) {
	resolved := make([]string, len(values))
	for i, value := range values {
		var err error
		if resolved[i], err = resolve(value); err != nil {
			return nil, fmt.Errorf("%s: %w", option, err)
		}
		if resolved[i] == "" {
			return nil, fmt.Errorf("%s: value %d is empty", option, i+1)
		}
	}
	return resolved, nil
}

// Start begins the background work: refreshing keys, following the store and
// watching the geo databases. Before it, nothing is written: other commands
// provision configs too.
func (a *App) Start() error {
	if err := a.openDisks(); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	a.stop = stop
	go a.geo.Watch(ctx)
	if a.keys.Remote != nil {
		a.keys.Remote.Start()
	}
	a.state.use(a)
	a.state.Start()
	a.startSessions()
	if missing := a.missingKeys(); missing != "" {
		a.logger.Warn(missing)
	}
	for _, keyID := range a.keys.Fixed.IDs() {
		stored, _ := a.state.Key(keyID)
		a.logger.Info("verification key of a key_file", zap.String("key_id", keyID), zap.Bool("revoked", stored.Revoked))
	}
	return nil
}

// Stop ends the background work.
func (a *App) Stop() error {
	a.stop()
	return nil
}

// Cleanup releases the state that is shared with other configs.
func (a *App) Cleanup() error {
	var err error
	if a.state != nil {
		err = a.state.release(a)
	}
	if a.verifier != nil {
		_, releaseErr := tokenCachePool.Delete(a.tokenCacheKey())
		err = errors.Join(err, releaseErr)
	}
	if a.admission != nil {
		a.admission.Close()
	}
	if a.remoteKeys != nil {
		err = errors.Join(err, a.remoteKeys.release())
	}
	return err
}

// registerGauges adds the gauges of an app to the registry of its config.
func registerGauges(registry *prometheus.Registry, a *App) error {
	g := metrics.Gauges{Registry: registry}
	g.Add("keys", "Keys that verify tokens: of key files, of the control API and of the remote key set.",
		func() float64 { return float64(a.keys.Count()) })
	g.Add("token_cache_entries", "Tokens that are remembered as verified.",
		func() float64 { return float64(a.verifier.Cache.Entries()) })
	g.Add("token_cache_bytes", "Estimated memory of the remembered tokens.",
		func() float64 { return float64(a.verifier.Cache.Bytes()) })
	g.Add("manifest_memory_bytes", "Memory reserved for large manifests, which are buffered until they are rewritten and sent.",
		func() float64 { return float64(a.manifests.Reserved()) })
	g.Add("revocations", "Revocations of tokens and sessions in force.",
		func() float64 { return float64(a.state.RevocationCount()) })
	g.Add("store_up", "Whether the store of the control API's keys and settings answers; if not, the last known state is in force.",
		func() float64 { return boolToFloat(!a.state.Unavailable()) })
	for fact := range geo.FactCount {
		if !a.geo.Has(fact) {
			continue
		}
		option := fact.Option()
		name := strings.TrimSuffix(option, "_database")
		g.Add(name+"_build_timestamp_seconds", "When the "+option+" in force was built, in Unix seconds.",
			func() float64 { return float64(a.geo.BuildTime(fact).Unix()) })
		g.Add(name+"_last_reload_successful", "Whether the "+option+" in force is that of the file; if not, the file is missing or broken.",
			func() float64 { return boolToFloat(!a.geo.Stale(fact)) })
	}
	if a.countsSessions() {
		g.Add("sessions", "Playback sessions that run on this node.",
			func() float64 { return float64(a.state.tracker.Count()) })
	}
	if remote := a.keys.Remote; remote != nil {
		g.Add("jwks_last_success_timestamp_seconds", "When the remote key set was last loaded, in Unix seconds; 0 for never.",
			func() float64 { return float64(remote.LoadedAt().Unix()) })
	}
	return g.Err
}

// registerCacheGauges adds the gauges of the media caches of an app.
func registerCacheGauges(registry *prometheus.Registry, a *App) error {
	for tier, usage := range map[string]func() (int, int64){"memory": a.cacheUsage, "disk": a.diskUsage} {
		g := metrics.Gauges{Registry: registry, Labels: prometheus.Labels{"tier": tier}}
		g.Add("cache_objects", "Objects of the media caches.", func() float64 { objects, _ := usage(); return float64(objects) })
		g.Add("cache_bytes", "Bytes that the objects of the media caches take.", func() float64 { _, bytes := usage(); return float64(bytes) })
		if g.Err != nil {
			return g.Err
		}
	}
	return nil
}

func boolToFloat(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
