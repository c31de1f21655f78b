package signedplayback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"runtime/debug"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/geo"
	"github.com/signed-playback/caddy-signed-playback/internal/store"
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

// App holds what all gates of a server share: the keys that verify tokens, the
// geo database and the settings of videos.
type App struct {
	// Files with verification keys: a JWKS, a JWK, PEM (PKIX, PKCS#1, PKCS#8 or
	// a certificate), or the base64-wrapped `jwk` or `pem` that the keys API
	// returns. Private halves are dropped at load. A key without a `kid` takes
	// the name of its file without the ending. Placeholders are resolved.
	KeyFiles []string `json:"key_file,omitempty"`

	// The address of a JWKS, http or https, which is loaded at start and then
	// refreshed in the background. When that fails, the last good set stays in
	// force. A key in `key_file` wins over one of the same `kid` here.
	// Placeholders are resolved.
	JWKSURL string `json:"jwks_url,omitempty"`

	// How often the JWKS is refreshed, at least every second. Default: `5m`.
	JWKSInterval caddy.Duration `json:"jwks_interval,omitempty"`

	// A geo database in MaxMind DB format, with the country as
	// `country.iso_code` or `country_code`, for the rules of type
	// `ip.geoip.country`. It is loaded into memory, and loaded again when the
	// file changes. Placeholders are resolved.
	GeoIPDatabase string `json:"geoip_database,omitempty"`

	// Memory for tokens whose signature has been verified, in bytes. Default:
	// 128 MiB, or a quarter of the memory limit of the process (GOMEMLIMIT, or
	// that of the container), if that is less. A quarter of it counts from the
	// start, which has garbage collected less often.
	TokenCacheSize uint64 `json:"token_cache_size,omitempty"`

	// What the control API puts before playback paths: an http or https URL.
	// Default: none, so they are relative to the host. Placeholders are
	// resolved.
	PublicURL string `json:"public_url,omitempty"`

	// Where keys and settings that the control API makes are kept: `caddy`, the
	// storage of the server itself, or `redis`. Default: `caddy`.
	Store string `json:"store,omitempty"`

	// The address of the Redis or Valkey that a fleet shares:
	// redis://[user:password@]host:port/database, rediss:// for TLS.
	// Placeholders are resolved.
	StoreURL string `json:"store_url,omitempty"`

	// Settings for videos that have none of their own.
	VideoSettings

	// How far in the future the claim `nbf` may lie, for signers whose clocks
	// are ahead. `exp` is exact. Default: `5s`.
	Leeway *caddy.Duration `json:"leeway,omitempty"`

	// Refuse a token whose `exp` is further in the future than this. Default:
	// no limit.
	MaxTokenLifetime caddy.Duration `json:"max_token_lifetime,omitempty"`

	// Settings of single videos, by video id. What a video does not set is as
	// it is for all.
	Videos map[string]VideoSettings `json:"video,omitempty"`

	logger    *zap.Logger
	now       func() time.Time // tests set their own
	metrics   *metrics
	policy    token.Policy
	state     *state
	storage   *configStorage
	keys      *keyring
	tokens    *tokenCache
	limit     *verificationLimit
	manifests *manifestMemory
	countries *geo.Database // nil without a database
	defaults  settings
	// For gates and videos that say nothing of it.
	enforcement enforcement
	videos      map[string]settings
	publicURL   string
	stop        context.CancelFunc
}

// VideoSettings are the settings that a video can have of its own.
type VideoSettings struct {
	// Whether the video plays with a signed token only. Default: true.
	RequireSignedURLs *bool `json:"require_signed_urls,omitempty"`

	// The sites on which the video may play: `[*.]host[:port]`, an IP address,
	// or `*`. Without a port, http on port 80 and https on port 443 are meant.
	// `*.example.com` covers `example.com` too. Default: any site.
	AllowedOrigins []string `json:"allowed_origins,omitempty"`

	// What to do with a request that has neither `Origin` nor `Referer` where
	// allowed origins are set: `deny` or `allow`. Default: `deny`.
	MissingOrigin string `json:"missing_origin,omitempty"`

	// Whether refusals are made or only reported. What a video says counts
	// before what its gate says, and that before what is said for all videos.
	Enforcement
}

// settings are the compiled VideoSettings. They are immutable.
type settings struct {
	requireSignedURLs bool
	origins           originPolicy
	enforcement       enforcement // not set for most: then that of the gate
}

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  appID,
		New: func() caddy.Module { return new(App) },
	}
}

// Provision loads keys and geo database and compiles the settings.
func (a *App) Provision(ctx caddy.Context) error {
	a.logger = ctx.Logger()
	a.now = time.Now
	a.metrics = collectMetrics()
	a.manifests = processManifestMemory()
	if err := a.metrics.register(ctx.GetMetricsRegistry()); err != nil {
		return err
	}
	if err := a.provisionPolicy(); err != nil {
		return err
	}
	if err := a.provisionSettings(); err != nil {
		return err
	}
	if err := a.provisionPublicURL(); err != nil {
		return err
	}
	if err := a.provisionState(ctx); err != nil {
		return err
	}
	if err := a.provisionKeys(); err != nil {
		return err
	}
	if err := a.provisionTokenCache(); err != nil {
		return err
	}
	if err := a.provisionCountries(); err != nil {
		return err
	}
	return registerGauges(ctx.GetMetricsRegistry(), a)
}

func (a *App) provisionCountries() error {
	if a.GeoIPDatabase == "" {
		return nil
	}
	path, err := resolve(a.GeoIPDatabase)
	if err != nil {
		return fmt.Errorf("geoip_database: %w", err)
	}
	if a.countries, err = geo.Open(path, a.logger); err != nil {
		return fmt.Errorf("geoip_database %w", err)
	}
	return nil
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
	return nil
}

func (a *App) provisionSettings() (err error) {
	if a.defaults, err = a.VideoSettings.compile(settings{requireSignedURLs: true}); err != nil {
		return err
	}
	a.enforcement, a.defaults.enforcement = a.defaults.enforcement, enforcement{}
	a.enforcement.warn(a.logger, "all gates and videos that do not say otherwise")
	a.videos = make(map[string]settings, len(a.Videos))
	for id, own := range a.Videos {
		if !token.ValidVideoID(id) {
			return fmt.Errorf("video %q: %w", id, errVideoID)
		}
		if a.videos[id], err = own.compile(a.defaults); err != nil {
			return fmt.Errorf("video %q: %w", id, err)
		}
		a.videos[id].enforcement.warn(a.logger, "video "+id)
	}
	return nil
}

var errVideoID = errors.New("a video id is 1 to 64 of A-Z a-z 0-9 _ -")

// compile overlays the settings on defaults.
func (v VideoSettings) compile(defaults settings) (settings, error) {
	compiled := defaults
	if v.RequireSignedURLs != nil {
		compiled.requireSignedURLs = *v.RequireSignedURLs
	}
	if len(v.AllowedOrigins) > 0 {
		allowed, err := compileOrigins(v.AllowedOrigins)
		if err != nil {
			return settings{}, err
		}
		compiled.origins.allowed = allowed
	}
	if v.MissingOrigin != "" {
		allow, err := parseMissingOrigin(v.MissingOrigin)
		if err != nil {
			return settings{}, err
		}
		compiled.origins.allowMissing = allow
	}
	var err error
	compiled.enforcement, err = v.Enforcement.compile()
	return compiled, err
}

func parseMissingOrigin(s string) (allow bool, err error) {
	switch s {
	case "allow":
		return true, nil
	case "deny":
		return false, nil
	}
	return false, fmt.Errorf("missing_origin %q: want deny or allow", s)
}

func (a *App) provisionTokenCache() (err error) {
	if a.TokenCacheSize == 0 {
		a.TokenCacheSize = tokenCacheSizeWithin(debug.SetMemoryLimit(-1))
	}
	if a.TokenCacheSize < minTokenCacheSize {
		return fmt.Errorf("token_cache_size %d: want at least %d bytes", a.TokenCacheSize, minTokenCacheSize)
	}
	a.limit = newVerificationLimit()
	a.tokens, err = acquireTokenCache(a.TokenCacheSize)
	return err
}

// tokenCacheSizeWithin returns the size of the cache for a process with a memory
// limit in bytes. A cache that took all of it would have the garbage collector
// run all the time.
func tokenCacheSizeWithin(limit int64) uint64 {
	return memoryWithin(limit, tokenCacheShare, minTokenCacheSize, defaultTokenCacheSize)
}

// memoryWithin returns what something may take of the memory of a process with a
// memory limit, all in bytes: one in so many of it, within bounds.
func memoryWithin(limit int64, share, least, most uint64) uint64 {
	return min(most, max(least, uint64(limit)/share))
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

// parsePublicURL checks what is put before playback paths.
func parsePublicURL(address string) (string, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" ||
		u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return "", fmt.Errorf("public_url %q: want an http or https URL like https://media.example.com", address)
	}
	return strings.TrimSuffix(u.String(), "/"), nil
}

// provisionState opens the store, or takes the state over from the config
// before this one.
func (a *App) provisionState(ctx caddy.Context) (err error) {
	address, err := resolve(a.StoreURL)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	storage := &configStorage{ctx.Storage()}
	switch {
	case a.Store == "redis" && address == "":
		return errors.New("store redis: it needs the URL of the Redis, like redis://127.0.0.1:6379/0")
	case a.Store == "redis":
		a.state, err = acquireState("redis "+address, storage, func(local certmagic.Storage, logger *zap.Logger) (store.Store, error) {
			return store.NewRedis(address, local, logger)
		})
	case a.Store != "" && a.Store != "caddy":
		return fmt.Errorf("store %q: want caddy or redis", a.Store)
	case address != "":
		return errors.New("store caddy takes no URL; the global option `storage` says where Caddy keeps its files")
	default:
		a.state, err = acquireState("caddy "+storageIdentity(storage.Storage), storage, func(shared certmagic.Storage, logger *zap.Logger) (store.Store, error) {
			return store.NewCaddy(shared, logger), nil
		})
	}
	if err != nil {
		return fmt.Errorf("store %s: %w", a.Store, err)
	}
	a.storage = storage
	return nil
}

// storageIdentity tells whether two storages of two configs are the same place:
// their configuration is the same. Where it cannot be told, each config has a
// state of its own, which follows the others' as that of another node would.
func storageIdentity(storage certmagic.Storage) string {
	config, err := json.Marshal(storage)
	if err != nil || string(config) == "{}" {
		return fmt.Sprintf("%T %p", storage, storage)
	}
	return fmt.Sprintf("%T %s", storage, config)
}

func (a *App) provisionKeys() error {
	files := make([]string, len(a.KeyFiles))
	for i, file := range a.KeyFiles {
		var err error
		if files[i], err = resolve(file); err != nil {
			return fmt.Errorf("key_file: %w", err)
		}
	}
	fixed, err := loadKeyFiles(files)
	if err != nil {
		return err
	}
	a.keys = &keyring{fixed: fixed, stored: &a.state.keys, away: &a.state.away}
	if a.JWKSURL == "" {
		return nil
	}
	address, err := resolve(a.JWKSURL)
	if err != nil {
		return fmt.Errorf("jwks_url: %w", err)
	}
	interval := time.Duration(a.JWKSInterval)
	if interval == 0 {
		interval = defaultJWKSInterval
	}
	if interval < minJWKSInterval {
		return fmt.Errorf("jwks_url: interval %s is shorter than %s", interval, minJWKSInterval)
	}
	if a.keys.remote, err = acquireRemoteKeys(address, interval); err != nil {
		return fmt.Errorf("jwks_url %q: %w", a.JWKSURL, err)
	}
	return nil
}

// resolve fills in {env.*} and {file.*}. A placeholder that stands for nothing
// is an error, for an option that silently becomes empty is one that is off.
func resolve(value string) (string, error) {
	resolved, err := caddy.NewReplacer().ReplaceOrErr(value, true, true)
	if err != nil {
		return "", fmt.Errorf("%q: %w", value, err)
	}
	return resolved, nil
}

// settings returns the settings of a video: those of the config, else those of
// the control API over those for all. Errors are refusals.
func (a *App) settings(ctx context.Context, videoID string) (settings, error) {
	if own, ok := a.videos[videoID]; ok {
		return own, nil
	}
	video, err := a.state.videos.get(ctx, videoID)
	if err != nil {
		return settings{}, refuse(reasonStateUnavailable, errSettingsUnknown)
	}
	return video.over(a.defaults), nil
}

// Start begins the background work: refreshing keys and watching the geo
// database.
func (a *App) Start() error {
	ctx, stop := context.WithCancel(context.Background())
	a.stop = stop
	if a.countries != nil {
		go a.countries.Watch(ctx)
	}
	if a.keys.remote != nil {
		a.keys.remote.start()
	}
	a.state.storages.use(a.storage)
	a.state.start()
	if a.keys.remote == nil && a.state.keys.known() && a.keys.count() == 0 {
		a.logger.Warn("there are no verification keys yet, so no token plays; set key_file or jwks_url, or have the control API make a key or mint a token")
	}
	for _, keyID := range a.keys.fixed.IDs() {
		stored, _ := a.state.keys.get(keyID)
		a.logger.Info("verification key of a key_file", zap.String("key_id", keyID), zap.Bool("revoked", stored.revoked))
	}
	return nil
}

// Stop ends the background work.
func (a *App) Stop() error {
	a.stop()
	return nil
}

// Cleanup gives up what is shared with other configs.
func (a *App) Cleanup() error {
	var err error
	if a.state != nil {
		err = releaseState(a.state, a.storage)
	}
	if a.tokens != nil {
		err = errors.Join(err, a.tokens.release(a.TokenCacheSize))
	}
	if a.keys != nil && a.keys.remote != nil {
		err = errors.Join(err, releaseRemoteKeys(a.keys.remote))
	}
	return err
}

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
