// Package signedplayback is a Caddy module that puts signed playback URLs in
// front of an HLS or DASH origin, as Cloudflare Stream's "Secure your stream"
// does for its customers.
//
// A viewer's URL carries a signed token in the place of the video id:
// /<token>/manifest/video.m3u8. On each request, the gate verifies the token,
// applies its access rules and checks the requesting site against the video's
// allowed origins. Then it hands the request to the next handler, usually
// reverse_proxy, with the video's path on the origin.
//
// The package registers the app `signed_playback` and the handler
// `http.handlers.signed_playback`. ARCHITECTURE.md says how they work.
package signedplayback

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
	"github.com/signed-playback/caddy-signed-playback/internal/mediatype"
	"github.com/signed-playback/caddy-signed-playback/internal/option"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/player"
	"github.com/signed-playback/caddy-signed-playback/internal/reportonly"
	"github.com/signed-playback/caddy-signed-playback/internal/weborigin"
	"github.com/signed-playback/caddy-signed-playback/manifest"
)

func init() {
	caddy.RegisterModule(new(Gate))
}

// Gate lets requests pass that have a valid signed token for a video, or the id of
// a video that requires no token. It refuses all other requests.
//
// It sets these placeholders, which the access log has as fields too
// (`signed_playback_video` and so on):
//
//	Placeholder                        | Description
//	-----------------------------------|------------
//	`{http.signed_playback.video}`     | The video id, once the token is verified
//	`{http.signed_playback.kind}`      | `manifest`, `segment`, `iframe`, `thumbnail`, `download` or `other`
//	`{http.signed_playback.key_id}`    | The `kid` of the key that signed the token
//	`{http.signed_playback.token_id}`  | The first 16 hexadecimal digits of the token's SHA-256
//	`{http.signed_playback.country}`   | The viewer's country by the geo database, if there is one
//	`{http.signed_playback.result}`    | `allowed`, `refused`, `would_refuse` (see `enforce`) or `preflight`
//	`{http.signed_playback.reason}`    | Why the request was refused, or would have been; else empty
//
// A refusal is a Caddy error, so `handle_errors` can give it a page. Its header
// `Signed-Playback-Reason` has the reason.
type Gate struct {
	// The folder of a video on the origin: a path that contains `{video}`, the
	// video id. Placeholders of the environment (`{env.*}`) are resolved at
	// start. Default: `/{video}`. Permitted: `/vod/{video}/hls`. Not permitted:
	// `/vod` (without the id, one token would open all videos).
	OriginPath string `json:"origin_path,omitempty"`

	// Path globs, relative to the video, of files that need a token with the
	// claim `downloadable`. `*` matches any run of characters, including
	// slashes, and letters match in both cases. Default: `downloads/*`.
	Downloads []string `json:"downloads,omitempty"`

	// Serve a player page at /<token>/iframe instead of asking the origin for
	// it. Default: none.
	Player *PlayerConfig `json:"player,omitempty"`

	// The HLS playlist with which a player begins, relative to the video: the player
	// page plays it. It is written as the file is called or percent-encoded. Default:
	// `manifest/video.m3u8`. Permitted: `master.m3u8`, `hls/index.m3u8`. Not
	// permitted: `video.mpd` (the page plays HLS).
	Manifest string `json:"manifest,omitempty"`

	// Host names, with the port if it is not the default one, that belong to
	// this origin. The gate rewrites absolute URIs with these hosts in manifests
	// so that they stay below the viewer's token. It always does so for its own
	// host name. Default: none.
	ManifestHosts []string `json:"manifest_hosts,omitempty"`

	// Features that manifests may have although they let others than the gate
	// choose from where players load, or learn what players load: `steering`
	// (content steering, and MPDs that the gate does not rewrite) and `reporting`
	// (DASH metrics, client data reporting, and elements that MPDs do not have). The
	// gate takes all others out, because they give the viewer's URL away. Default:
	// none. Permitted: `["steering"]`. Not permitted: `["all"]`.
	ManifestFeatures []string `json:"manifest_features,omitempty"`

	// `allow` lets paths pass that servers read in different ways: with `;`, empty
	// segments, and encoded slashes, semicolons, question marks, number and percent
	// signs, where all known readings stay in the folder of the video and agree on
	// whether the file is a manifest and whether it needs `downloadable`. Default:
	// `refuse`. Permitted: `allow`. Not permitted: `on`.
	AmbiguousPaths string `json:"ambiguous_paths,omitempty"`

	// Headers of the origin that viewers get besides those about the body, ranges
	// and caching, validators, `Date`, `Location`, `Retry-After`, `Server-Timing`,
	// `Timing-Allow-Origin`, digests, `CMSD-*`, `Cache-Status` and `Via`. Capitals do
	// not matter. Default: none. Permitted: `X-Cache`, `Link`. Not permitted:
	// `Set-Cookie`, `NEL` and others that have browsers store or report what
	// belongs to other videos; headers that the gate sets itself.
	PassResponseHeaders []string `json:"pass_response_headers,omitempty"`

	// Serve the origin's own page at /<token>/iframe as it is: it may run scripts,
	// and its Content-Security-Policy passes. Set it only if no uploader decides
	// what the origin has there. It excludes Player. Default: false, so the page
	// is sandboxed like every file.
	TrustOriginIframe bool `json:"trust_origin_iframe,omitempty"`

	// Headers of viewers that the origin gets besides `Accept`, `Accept-*`,
	// `Cache-Control`, `CMCD-*`, `DNT`, `If-*`, `Priority`, `Range`, `Save-Data`,
	// `Sec-GPC`, `traceparent`, `tracestate`, `User-Agent`, `Via`, `X-Forwarded-For`,
	// `X-Forwarded-Host`, `X-Forwarded-Proto`, `X-Playback-Session-Id` and
	// `X-Request-Id`. `*` means all that name no path or method. A header whose value
	// contains the token never passes. Default: none. Permitted: `Authorization`.
	// Not permitted: `Referer`, `Origin`, and headers about the connection.
	PassRequestHeaders []string `json:"pass_request_headers,omitempty"`

	// Report-only mode for videos without a setting of their own. Default: the
	// setting of the app.
	Enforcement

	// Where the gate is in the Caddyfile, for warnings: `Caddyfile:12`. Caddy sets
	// it when it reads a Caddyfile.
	Source string `json:"source,omitempty"`

	app           *App
	enforcement   reportonly.Setting
	originPath    playbackpath.OriginPath
	paths         playbackpath.Rules
	manifest      string       // escaped
	player        *player.Page // nil without a player
	manifestHosts []string
	features      manifest.Features
	rewritingID   string // the same for gates that make the same of each manifest
	passResponse  headerpolicy.Response
	passOnPage    headerpolicy.Response // the same, for a page that TrustOriginIframe trusts

	requestHeaders headerpolicy.Request

	mayReportTokens bool // for some video
	reportLog       *zap.Logger
	manifestLog     *zap.Logger // for each message once a minute
}

// CaddyModule returns the Caddy module information.
func (*Gate) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.signed_playback",
		New: func() caddy.Module { return new(Gate) },
	}
}

// Provision compiles the configuration.
func (g *Gate) Provision(ctx caddy.Context) error {
	app, err := ctx.App(appID)
	if err != nil {
		return fmt.Errorf("loading app %s: %w", appID, err)
	}
	g.app = app.(*App)
	if err := g.app.checkServer(ctx); err != nil {
		return err
	}
	if err := g.provisionEnforcement(ctx); err != nil {
		return err
	}
	if g.originPath, err = g.resolveOriginPath(); err != nil {
		return err
	}
	if g.paths, err = g.resolvePathRules(); err != nil {
		return err
	}
	if g.passResponse, err = headerpolicy.ParseResponse(g.PassResponseHeaders); err != nil {
		return err
	}
	g.passOnPage = g.passResponse.With(headerpolicy.CSP)
	manifestPath, err := g.resolveManifest()
	if err != nil {
		return err
	}
	g.manifest = manifestPath.Escaped
	if !slices.Contains(g.app.gateManifests, g.manifest) {
		g.app.gateManifests = append(g.app.gateManifests, g.manifest)
	}
	if _, err := g.app.manifestOfLinks(); err != nil {
		return err
	}
	if g.Player != nil {
		if g.TrustOriginIframe {
			return errTwoPages
		}
		if g.player, err = g.Player.provision(g.manifest); err != nil {
			return fmt.Errorf("player %w", err)
		}
	}
	g.manifestHosts = make([]string, len(g.ManifestHosts))
	for i, host := range g.ManifestHosts {
		if g.manifestHosts[i], err = weborigin.ParseManifestHost(host); err != nil {
			return err
		}
	}
	if err := g.provisionFeatures(); err != nil {
		return err
	}
	g.rewritingID = g.identifyRewriting()
	g.requestHeaders, err = headerpolicy.ParseRequest(g.PassRequestHeaders)
	return err
}

var ambiguousPathsWords = option.Words{Option: "ambiguous_paths", First: "refuse", Second: "allow"}

// resolvePathRules compiles the options about suffixes.
func (g *Gate) resolvePathRules() (p playbackpath.Rules, err error) {
	p.Sessions = g.app.countsSessions()
	if p.AllowAmbiguous, err = ambiguousPathsWords.IsSecond(g.AmbiguousPaths); err != nil {
		return p, err
	}
	globs := g.Downloads
	if len(globs) == 0 {
		globs = []string{"downloads/*"}
	}
	p.Downloads = make(playbackpath.Globs, len(globs))
	for i, glob := range globs {
		if glob, err = resolve(glob); err != nil {
			return p, fmt.Errorf("downloads: %w", err)
		}
		if p.Downloads[i], err = playbackpath.ParseGlob(glob); err != nil {
			return p, err
		}
	}
	return p, nil
}

func (g *Gate) provisionFeatures() error {
	for i, name := range g.ManifestFeatures {
		feature, err := manifest.ParseFeature(name)
		if err == nil && slices.Contains(g.ManifestFeatures[:i], name) {
			err = fmt.Errorf("manifest_features: %q is repeated", name)
		}
		if err != nil {
			return err
		}
		g.features |= feature
	}
	return nil
}

func (g *Gate) provisionEnforcement(ctx caddy.Context) error {
	own, err := g.Enforcement.compile()
	if err != nil {
		return err
	}
	g.enforcement = own.Or(g.app.enforcement)
	g.mayReportTokens = g.enforcement.Checks.Has(reportonly.Token)
	for _, video := range g.app.videos {
		g.mayReportTokens = g.mayReportTokens || video.enforcement.Checks.Has(reportonly.Token)
	}
	own.Warn(ctx.Logger(), "this gate")
	g.reportLog, g.manifestLog = sampledLogger(ctx.Logger(), time.Second, 5), sampledLogger(ctx.Logger(), time.Minute, 1)
	return nil
}

// resolveOriginPath replaces Caddy's placeholders around {video}, which is not one
// of them.
func (g *Gate) resolveOriginPath() (playbackpath.OriginPath, error) {
	if g.OriginPath == "" {
		return playbackpath.ParseOriginPath("/" + playbackpath.VideoPlaceholder)
	}
	literals := strings.Split(g.OriginPath, playbackpath.VideoPlaceholder)
	for i, literal := range literals {
		var err error
		if literals[i], err = resolve(literal); err != nil {
			return playbackpath.OriginPath{}, fmt.Errorf("origin_path: %w", err)
		}
	}
	return playbackpath.ParseOriginPath(strings.Join(literals, playbackpath.VideoPlaceholder))
}

// resolveManifest returns the path of the manifest with which players begin.
func (g *Gate) resolveManifest() (playbackpath.Suffix, error) {
	path, err := resolve(cmp.Or(g.Manifest, playbackpath.DefaultManifest))
	if err != nil {
		return playbackpath.Suffix{}, fmt.Errorf("manifest: %w", err)
	}
	parsed, err := playbackpath.ParseManifestPath(path)
	if err == nil && g.Player != nil && (mediatype.Ending(parsed.Decoded) == "mpd" || parsed.Decoded == playbackpath.HLSJSSuffix) {
		err = player.ErrManifest
	}
	if err != nil {
		return playbackpath.Suffix{}, fmt.Errorf("manifest %q: %w", path, err)
	}
	return parsed, nil
}

// Interface guards
var (
	_ caddy.Module                = (*Gate)(nil)
	_ caddy.Provisioner           = (*Gate)(nil)
	_ caddyhttp.MiddlewareHandler = (*Gate)(nil)
)
