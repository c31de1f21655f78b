package signedplayback

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/caddyserver/caddy/v2/modules/logging"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/geo"
	"github.com/signed-playback/caddy-signed-playback/token"
)

func proxyCommand() *cobra.Command {
	opts := proxyOptions{now: time.Now, claim: claimAddress, reach: reachOrigin}
	cmd := &cobra.Command{
		Use:   "proxy --from <address> --to <origin> [--key <file>] [--sub <video>] [--exp <time>] [--allowed-origins <pattern>...] [--geoip-database <file>] [--player [--hls-js <file>]] [--access-log] [--debug]",
		Short: "Runs a gateway without a config file, and prints a signed URL",
		Long: `
Runs the gate in front of an origin, as caddy reverse-proxy does without it, and
prints a first signed URL to play. With --player it also serves a player page,
and prints the URL of that. Ctrl-C ends it.

A host name or address in --from means HTTPS with a certificate that Caddy gets
and renews, unless there is http:// before it or :80 behind it; a port alone
means HTTP. The path of --to is the folder that the videos' folders are in. An
origin without a scheme is asked over HTTP.

The key is what sign takes: a file, or - for standard input. Without --key, a
new one is made that is in memory only, so its URLs end with the process. The
gate itself never gets more than the public half.

	$ caddy signed-playback proxy --from :8080 --to 127.0.0.1:8081 --player
	$ (umask 077; caddy signed-playback keygen > key.json)
	$ caddy signed-playback proxy --from media.example.com --to https://origin.example.net/videos \
		--key key.json --sub launch --exp 12h --allowed-origins '*.example.com'

Keys and settings that the control API has made on this machine count here too.
Tokens are removed from the log.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts.stdin, opts.warnings = cmd.InOrStdin(), cmd.ErrOrStderr()
			return serveProxy(opts, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&opts.from, "from", "f", "localhost", "the `address` for viewers")
	flags.StringVarP(&opts.to, "to", "t", "", "the `origin` that has the videos")
	flags.StringVar(&opts.key, "key", "", "the `file` with the private key, or - for standard input (default: a new key)")
	flags.StringVar(&opts.video, "sub", "demo", "the `video` id of the first URL")
	flags.StringVar(&opts.expires, "exp", "1h", "the `time` when the first URL expires")
	flags.StringSliceVar(&opts.allowedOrigins, "allowed-origins", nil, "a `pattern` for sites that videos may play on, like *.example.com; may be repeated (default: any site)")
	flags.StringVar(&opts.geoIPDatabase, "geoip-database", "", "the `file` with the countries of addresses, for tokens with country rules")
	flags.BoolVar(&opts.player, "player", false, "serve a player page")
	flags.StringVar(&opts.hlsJS, "hls-js", "", "the `file` with hls.js, for browsers that do not play HLS themselves")
	flags.BoolVar(&opts.accessLog, "access-log", false, "log each request")
	flags.BoolVarP(&opts.debug, "debug", "v", false, "log at debug level")
	return cmd
}

type proxyOptions struct {
	from, to         string
	key              string // "" for a new one
	video, expires   string
	allowedOrigins   []string
	geoIPDatabase    string
	player           bool
	hlsJS            string
	accessLog, debug bool

	publicKey string // the file through which the gate gets the public half
	stdin     io.Reader
	warnings  io.Writer
	now       func() time.Time
	claim     func(address string) error   // tells whether the server can listen there
	reach     func(origin webOrigin) error // tells whether an origin is up
}

// serveProxy runs the gateway until a signal ends the process.
func serveProxy(opts proxyOptions, out io.Writer) error {
	caddy.TrapSignals()
	folder, err := os.MkdirTemp("", "signed-playback-")
	if err != nil {
		return fmt.Errorf("making a folder for the public key: %w", err)
	}
	remove := func() { _ = os.RemoveAll(folder) }
	defer remove()
	caddy.OnExit(func(context.Context) { remove() }) // a signal may come before the gate has read it
	opts.publicKey = filepath.Join(folder, "public.json")

	var description bytes.Buffer
	config, err := proxy(opts, &description)
	if err != nil {
		return err
	}
	if err := caddy.Run(config); err != nil {
		return err
	}
	remove()
	if err := errorIfRevoked(); err != nil {
		return errors.Join(err, caddy.Stop())
	}
	fmt.Fprint(out, &description)
	select {}
}

// errorIfRevoked tells of a key that the control API has revoked on this machine:
// the gate runs, and the URL that was just signed does not play.
func errorIfRevoked() error {
	app, err := caddy.ActiveContext().AppIfConfigured(appID)
	if err != nil {
		return err
	}
	keys := app.(*App).keys
	for _, keyID := range keys.fixed.IDs() {
		if stored, _ := keys.stored.get(keyID); stored.revoked {
			return fmt.Errorf("--key: the control API has revoked the key %q, so its URLs do not play; `caddy signed-playback keygen` makes a key", keyID)
		}
	}
	return nil
}

// proxy returns the config of a gateway, and prints what there is to know of it
// once it runs. The public half of its key is in opts.publicKey then, for the
// gate to read; the private half is nowhere but in memory.
func proxy(opts proxyOptions, out io.Writer) (*caddy.Config, error) {
	site, err := parseProxySite(opts.from)
	if err != nil {
		return nil, err
	}
	origin, err := parseProxyOrigin(opts.to)
	if err != nil {
		return nil, err
	}
	gate := &Gate{OriginPath: origin.template, ManifestHosts: []string{origin.address()}}
	if gate.Player, err = opts.playerConfig(); err != nil {
		return nil, err
	}
	app, err := opts.app()
	if err != nil {
		return nil, err
	}
	if err := opts.claim(site.listen); err != nil {
		return nil, fmt.Errorf("--from %q: %w; give a port that no other server has and that this user may listen on, like :8080", opts.from, err)
	}
	key, err := opts.signingKey()
	if err != nil {
		return nil, err
	}
	claims, err := opts.claims()
	if err != nil {
		return nil, err
	}
	compact, err := token.Sign(claims, key)
	if err != nil {
		return nil, err
	}
	if err := writePublicKey(opts.publicKey, key); err != nil {
		return nil, err
	}
	opts.warn(site, origin)
	opts.describe(out, site, origin, claims, compact)
	return opts.config(site, origin, gate, app), nil
}

// proxySite is where viewers reach the gateway.
type proxySite struct {
	webOrigin      // as printed URLs have it
	anyHost   bool // whatever the viewer calls it
	listen    string
}

// parseProxySite reads --from. As with caddy reverse-proxy, a host means HTTPS
// and a port alone HTTP, if there is no scheme. Unlike there, a loopback address
// is listened on alone.
func parseProxySite(text string) (proxySite, error) {
	invalid := func(why string) (proxySite, error) {
		return proxySite{}, fmt.Errorf("--from %q: %s; want an address like media.example.com, :8080 or http://127.0.0.1:8080", text, why)
	}
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok {
		scheme, rest = "", text
	}
	name, port, _, err := splitHostPort(strings.TrimSuffix(rest, "/"))
	if err != nil {
		return invalid(err.Error())
	}
	site := proxySite{webOrigin: webOrigin{host: name, port: port}, anyHost: name == ""}
	if name != "" {
		if site.host, err = parseHost(name); err != nil {
			return invalid("the host is not valid: " + err.Error())
		}
	}
	address, _ := netip.ParseAddr(site.host)
	if address.IsUnspecified() {
		site.anyHost = true
	}
	switch scheme {
	case "", "http", "https":
		site.https = scheme == "https" || scheme == "" && !site.anyHost && port != defaultPort(false)
	default:
		return invalid(fmt.Sprintf("%q is neither http nor https", scheme))
	}
	site.port = cmp.Or(port, defaultPort(site.https))
	switch {
	case text == "":
		return invalid("it is empty")
	case site.https && site.anyHost:
		return invalid("a certificate for HTTPS needs a host name")
	case site.port == defaultPort(!site.https):
		return invalid(fmt.Sprintf("port %d is not for this scheme", site.port))
	}
	if address.IsLoopback() || address.IsUnspecified() {
		site.listen = site.address()
	} else {
		site.listen = ":" + strconv.Itoa(int(site.port))
	}
	if site.anyHost {
		site.host = "localhost"
	}
	return site, nil
}

// proxyOrigin is where the videos are.
type proxyOrigin struct {
	webOrigin
	template string // the gate's origin_path
}

// parseProxyOrigin reads --to.
func parseProxyOrigin(text string) (proxyOrigin, error) {
	if text == "" {
		return proxyOrigin{}, errors.New("proxy needs --to, the origin, like 127.0.0.1:8081 or https://origin.example.com")
	}
	if strings.Contains(text, "@") {
		// What stands before it may be a password, and is not repeated.
		return proxyOrigin{}, errors.New("--to: user names and passwords are not supported; a Caddyfile can send them with header_up")
	}
	invalid := func(why string) (proxyOrigin, error) {
		return proxyOrigin{}, fmt.Errorf("--to %q: %s; want an origin like 127.0.0.1:8081, http://10.0.0.2:8081 or https://origin.example.com/videos", text, why)
	}
	address := text
	if !strings.Contains(text, "://") {
		address = "http://" + text
	}
	u, err := url.Parse(address)
	switch {
	case err != nil:
		return invalid("it is not a URL")
	case u.Scheme != "http" && u.Scheme != "https":
		return invalid(fmt.Sprintf("%q is neither http nor https", u.Scheme))
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return invalid("it has a query or a fragment, and the viewer's query is what goes to the origin")
	}
	name, port, _, err := splitHostPort(u.Host)
	if err != nil {
		return invalid(err.Error())
	}
	origin := proxyOrigin{webOrigin: webOrigin{https: u.Scheme == "https"}}
	if origin.host, err = parseHost(cmp.Or(name, "localhost")); err != nil || u.Host == "" {
		return invalid("the host is not valid")
	}
	origin.port = cmp.Or(port, defaultPort(origin.https))
	if origin.port == defaultPort(!origin.https) {
		return invalid(fmt.Sprintf("port %d is not for this scheme", origin.port))
	}
	folder := strings.TrimSuffix(u.EscapedPath(), "/")
	origin.template = folder + "/" + videoPlaceholder
	if _, err := parseOriginPath(origin.template); err != nil {
		return invalid(fmt.Sprintf("the path %q is not one of a folder, in letters, digits and -._~!$&'()*+,=:@", u.Path))
	}
	return origin, nil
}

// address is what to dial, or to listen on.
func (o webOrigin) address() string { return net.JoinHostPort(o.host, strconv.Itoa(int(o.port))) }

// url is the origin as a URL without a path.
func (o webOrigin) url() string {
	u := url.URL{Scheme: "http", Host: o.address()}
	if o.https {
		u.Scheme = "https"
	}
	if o.port == defaultPort(o.https) {
		u.Host = strings.TrimSuffix(u.Host, ":"+strconv.Itoa(int(o.port)))
	}
	return u.String()
}

// upstream has Caddy's transport ask an HTTPS origin by its own name.
func (o proxyOrigin) upstream() *reverseproxy.Handler {
	var transport reverseproxy.HTTPTransport
	if o.https {
		transport.TLS = new(reverseproxy.TLSConfig)
	}
	return &reverseproxy.Handler{
		TransportRaw: caddyconfig.JSONModuleObject(transport, "protocol", "http", nil),
		Upstreams:    reverseproxy.UpstreamPool{{Dial: o.address()}},
	}
}

func (opts proxyOptions) playerConfig() (*PlayerConfig, error) {
	if !opts.player {
		if opts.hlsJS != "" {
			return nil, fmt.Errorf("--hls-js %q is for the player page; add --player", opts.hlsJS)
		}
		return nil, nil
	}
	config := &PlayerConfig{HLSJS: opts.hlsJS}
	if _, err := config.provision(); err != nil {
		return nil, fmt.Errorf("--hls-js %q: %w; want dist/hls.min.js of the npm package hls.js", opts.hlsJS, err)
	}
	return config, nil
}

func (opts proxyOptions) app() (*App, error) {
	if _, err := compileOrigins(opts.allowedOrigins); err != nil {
		return nil, fmt.Errorf("--allowed-origins: %w; want [*.]host[:port], like *.example.com or localhost:3000", err)
	}
	if opts.geoIPDatabase != "" {
		if _, err := geo.Open(opts.geoIPDatabase, zap.NewNop()); err != nil {
			return nil, fmt.Errorf("--geoip-database: %w; want a MaxMind DB with countries, like GeoLite2-Country.mmdb", err)
		}
	}
	return &App{
		KeyFiles:      []string{opts.publicKey},
		GeoIPDatabase: opts.geoIPDatabase,
		VideoSettings: VideoSettings{AllowedOrigins: opts.allowedOrigins},
	}, nil
}

func (opts proxyOptions) signingKey() (*token.SigningKey, error) {
	if opts.key == "" {
		return token.GenerateSigningKey("")
	}
	key, err := readSigningKey(signOptions{key: opts.key, stdin: opts.stdin})
	if err != nil {
		return nil, fmt.Errorf("%w; `caddy signed-playback keygen` makes a key", err)
	}
	return key, nil
}

// claims returns those of the first URL.
func (opts proxyOptions) claims() (token.Claims, error) {
	if !token.ValidVideoID(opts.video) {
		return token.Claims{}, fmt.Errorf("--sub %q: %w", opts.video, errVideoID)
	}
	claims, err := signOptions{video: opts.video, expires: opts.expires, now: opts.now}.claims()
	if err == nil && !claims.ExpiresAt.After(opts.now()) {
		err = fmt.Errorf("--exp %q is in the past, so the URL would not play; want a time to come, like 1h", opts.expires)
	}
	return claims, err
}

// writePublicKey hands the gate its key. It takes keys from files, and reads
// them once.
func writePublicKey(path string, key *token.SigningKey) error {
	public, err := key.Public().JWK()
	if err == nil {
		err = os.WriteFile(path, public, 0o600)
	}
	if err != nil {
		return fmt.Errorf("handing the public key to the gate: %w", err)
	}
	return nil
}

func (opts proxyOptions) config(site proxySite, origin proxyOrigin, gate *Gate, app *App) *caddy.Config {
	route := caddyhttp.Route{HandlersRaw: []json.RawMessage{
		caddyconfig.JSONModuleObject(gate, "handler", "signed_playback", nil),
		caddyconfig.JSONModuleObject(origin.upstream(), "handler", "reverse_proxy", nil),
	}}
	if !site.anyHost {
		route.MatcherSetsRaw = caddyhttp.RawMatcherSets{{"host": caddyconfig.JSON(caddyhttp.MatchHost{site.host}, nil)}}
	}
	server := &caddyhttp.Server{
		Routes: caddyhttp.RouteList{route},
		Listen: []string{site.listen},
	}
	if !site.https {
		server.AutoHTTPS = &caddyhttp.AutoHTTPSConfig{Disabled: true}
	}
	if opts.accessLog {
		server.Logs = new(caddyhttp.ServerLogConfig)
	}
	return &caddy.Config{
		Admin:   &caddy.AdminConfig{Disabled: true, Config: &caddy.ConfigSettings{Persist: new(bool)}},
		Logging: opts.logging(),
		AppsRaw: caddy.ModuleMap{
			"http": caddyconfig.JSON(caddyhttp.App{Servers: map[string]*caddyhttp.Server{"proxy": server}}, nil),
			appID:  caddyconfig.JSON(app, nil),
		},
	}
}

// logging keeps tokens out of the log, also without an access log: errors have
// the request with them.
func (opts proxyOptions) logging() *caddy.Logging {
	encoder := logging.FilterEncoder{FieldsRaw: make(map[string]json.RawMessage)}
	for _, field := range tokenFields {
		encoder.FieldsRaw[field] = json.RawMessage(`{"filter":"signed_playback"}`)
	}
	base := caddy.BaseLog{EncoderRaw: caddyconfig.JSONModuleObject(encoder, "format", "filter", nil)}
	if opts.debug {
		base.Level = zap.DebugLevel.CapitalString()
	}
	return &caddy.Logging{Logs: map[string]*caddy.CustomLog{caddy.DefaultLoggerName: {BaseLog: base}}}
}

// warn prints what does not keep the gateway from running, but may be a surprise.
func (opts proxyOptions) warn(site proxySite, origin proxyOrigin) {
	if opts.key == "" {
		fmt.Fprintln(opts.warnings, "warning: there is no --key, so URLs are signed with a new key that is in memory only: they end with this process")
	}
	if site.anyHost && len(opts.allowedOrigins) > 0 {
		fmt.Fprintf(opts.warnings, "warning: --from %q answers to every host name, so a page on any name that leads here counts as allowed; give the host name\n", opts.from)
	}
	if err := opts.reach(origin.webOrigin); err != nil {
		fmt.Fprintf(opts.warnings, "warning: --to %q does not answer (%v): viewers get an error of status 502 until it does\n", opts.to, err)
	}
}

// describe prints where what is, a first URL and how to sign more.
func (opts proxyOptions) describe(out io.Writer, site proxySite, origin proxyOrigin, claims token.Claims, compact string) {
	folder := origin.url() + strings.TrimSuffix(origin.template, videoPlaceholder)
	fmt.Fprintf(out, "\nThe gate listens on %s. Viewers ask it for\n", site.listen)
	fmt.Fprintf(out, "  %s/<token>/<path>\nand it asks the origin for\n  %s<video>/<path>\n\n", site.url(), folder)

	fmt.Fprintf(out, "The video %s plays until %s:\n", claims.VideoID, relativeTime(claims.ExpiresAt, opts.now()))
	if opts.player {
		fmt.Fprintf(out, "  Page  %s/%s/%s\n", site.url(), compact, iframeSuffix)
	}
	fmt.Fprintf(out, "  HLS   %s/%s/manifest/video.m3u8\n", site.url(), compact)
	if len(opts.allowedOrigins) > 0 {
		fmt.Fprintf(out, "It plays on the allowed sites only, the page in an iframe there. With curl, add\n  -H 'Origin: %s'\n", exampleOrigin(opts.allowedOrigins[0]))
	}

	how := "Sign more with"
	if opts.key == "" {
		fmt.Fprint(out, "\nTo sign more, make a key and start again with --key key.json:\n  (umask 077; caddy signed-playback keygen > key.json)\n")
		how = "Then sign with"
	}
	fmt.Fprintf(out, "\n%s\n  caddy signed-playback sign --key %s --sub %s --url %s\nStop with Ctrl-C.\n\n",
		how, shellWord(cmp.Or(opts.key, "key.json")), claims.VideoID, shellWord(site.url()))
}

// exampleOrigin returns an origin that a pattern covers.
func exampleOrigin(pattern string) string {
	p, err := parseOriginPattern(pattern)
	if err != nil || p.any {
		return "https://www.example.com"
	}
	return webOrigin{https: true, host: p.host, port: cmp.Or(p.port, defaultPort(true))}.url()
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_./:=+-]+$`)

// shellWord quotes what a shell would take apart.
func shellWord(text string) string {
	if plainWord.MatchString(text) {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// claimAddress reports why a server cannot listen on an address. Caddy itself
// shares a port with any other of its servers, and each would get some of the
// requests.
func claimAddress(address string) error {
	listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp", address)
	if err != nil {
		return err
	}
	return listener.Close()
}

// reachTimeout bounds how long an origin that is down delays the start.
const reachTimeout = 2 * time.Second

// reachOrigin reports why an origin cannot be asked, as far as a connection
// tells.
func reachOrigin(origin webOrigin) error {
	ctx, cancel := context.WithTimeout(context.Background(), reachTimeout)
	defer cancel()
	var dialer interface {
		DialContext(ctx context.Context, network, address string) (net.Conn, error)
	} = new(net.Dialer)
	if origin.https {
		dialer = new(tls.Dialer)
	}
	conn, err := dialer.DialContext(ctx, "tcp", origin.address())
	if err != nil {
		return err
	}
	return conn.Close()
}
