package command

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"text/template"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/geo"
	"github.com/signed-playback/caddy-signed-playback/internal/mediatype"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/player"
	"github.com/signed-playback/caddy-signed-playback/internal/siteconfig"
	"github.com/signed-playback/caddy-signed-playback/internal/weborigin"
	"github.com/signed-playback/caddy-signed-playback/token"
)

func proxyCommand(m Module) *cobra.Command {
	opts := proxyOptions{claim: claimAddress, reach: reachOrigin}
	cmd := &cobra.Command{
		Use:   "proxy --to <origin> [--from <address>] [--key <file>] [--sub <video>] [--exp <time>] [--allowed-origins <pattern>...] [--geoip-database <file>] [--path <manifest>] [--player [--hls-js <file>]] [--access-log] [--debug]",
		Short: "Runs a gate without a config file, and prints a signed URL",
		Long: `
Runs the gate in front of an origin until you press Ctrl-C, and prints a first
signed URL:

	$ caddy signed-playback proxy --from :8080 --to 127.0.0.1:8081 --player
	The gate listens on :8080. Viewers ask it for
	  http://localhost:8080/<token>/<path>
	and it asks the origin for
	  http://127.0.0.1:8081/<video>/<path>

	The video demo plays until 2030-01-31T13:00:00Z (in 1h0m0s):
	  Page  http://localhost:8080/eyJhbGci…/iframe
	  HLS   http://localhost:8080/eyJhbGci…/manifest/video.m3u8

A host name or an IP address in --from means HTTPS, with a certificate that Caddy
gets and renews, unless there is http:// before it or :80 after it. A port alone
means HTTP. The path of --to is the folder that contains the folders of the
videos. Without a scheme, the gate connects to the origin over HTTP.

Without --key, proxy makes a new key in memory, and its URLs stop working when it
stops. The gate itself gets only the public key.

	$ caddy signed-playback keygen -o key.json
	$ caddy signed-playback proxy --from media.example.com --to https://origin.example.net/videos \
		--key key.json --sub launch --exp 12h --allowed-origins '*.example.com'

Keys and settings that the control API has stored on this machine apply here
too. The log contains no tokens.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts.terminal = terminalOf(cmd)
			return opts.serve(m)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&opts.from, "from", "f", "localhost", "the `address` for viewers")
	flags.StringVarP(&opts.to, "to", "t", "", "the `origin` that has the videos")
	flags.StringVar(&opts.key, "key", "", "the `file` with the private key, or - for standard input (default: a new key)")
	flags.StringVar(&opts.video, "sub", "demo", "the `video` id of the first URL")
	flags.StringVar(&opts.expires, "exp", "1h", "the `time` when the first URL expires")
	flags.StringSliceVar(&opts.allowedOrigins, "allowed-origins", nil, "a `pattern` for sites that may play the videos, like *.example.com; may be repeated (default: any site)")
	flags.StringVar(&opts.geoIPDatabase, "geoip-database", "", "the `file` with the geo database, for tokens with country rules")
	flags.StringVar(&opts.path, "path", playbackpath.DefaultManifest, "the `manifest` of the videos")
	flags.BoolVar(&opts.player, "player", false, "serve a player page")
	flags.StringVar(&opts.hlsJS, "hls-js", "", "the `file` with hls.js, for browsers that do not play HLS themselves")
	flags.BoolVar(&opts.accessLog, "access-log", false, "log each request")
	flags.BoolVarP(&opts.debug, "debug", "v", false, "log at debug level")
	return cmd
}

type proxyOptions struct {
	terminal
	from, to         string
	key              string // "" for a new one
	video, expires   string
	path             string // of the manifest
	allowedOrigins   []string
	geoIPDatabase    string
	player           bool
	hlsJS            string
	accessLog, debug bool

	publicKey string                              // the file that gives the gate its public key
	claim     func(address string) error          // reports why a server cannot listen on an address
	reach     func(origin weborigin.Origin) error // reports why an origin does not answer
}

// serve runs the gateway until a signal ends the process.
func (opts proxyOptions) serve(m Module) error {
	caddy.TrapSignals()
	file, err := os.CreateTemp("", "signed-playback-*.json")
	if err != nil {
		return fmt.Errorf("making a file for the public key: %w", err)
	}
	remove := func() { _ = os.Remove(file.Name()) }
	defer remove()
	caddy.OnExit(func(context.Context) { remove() }) // a signal may come before the gate has read the key
	opts.publicKey = file.Name()
	if err := file.Close(); err != nil {
		return err
	}
	text, description, err := opts.proxy()
	if err != nil {
		return err
	}
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt(text, nil)
	if err != nil {
		return err
	}
	if err := caddy.Load(config, true); err != nil {
		return err
	}
	remove()
	app, err := caddy.ActiveContext().AppIfConfigured(siteconfig.AppID)
	if err != nil {
		return err
	}
	if keyID := m.Gateway(app).RevokedKey(); keyID != "" { // the signed URL would not play
		err := fmt.Errorf("--key: the control API has revoked the key %q, so its URLs do not play; `caddy signed-playback keygen` makes a key", keyID)
		return errors.Join(err, caddy.Stop())
	}
	fmt.Fprint(opts.out, description)
	select {}
}

// proxy checks the flags and returns the gateway's Caddyfile, and the description that the user
// needs once the gateway runs. It writes the public key to opts.publicKey; the private key
// stays in memory.
func (opts proxyOptions) proxy() (config []byte, description string, err error) {
	site, err := parseProxySite(opts.from)
	if err != nil {
		return nil, "", fmt.Errorf("--from %q: %w; give an address like media.example.com, :8080 or http://127.0.0.1:8080", opts.from, err)
	}
	if strings.Contains(opts.to, "@") { // perhaps with a password, which an error must not repeat
		return nil, "", errors.New("--to: user names and passwords are not supported; a Caddyfile can send them with header_up")
	}
	origin, err := parseProxyOrigin(opts.to)
	if err != nil {
		return nil, "", fmt.Errorf("--to %q: %w; give an origin like 127.0.0.1:8081 or https://origin.example.com/videos", opts.to, err)
	}
	if err := opts.check(); err != nil {
		return nil, "", err
	}
	manifestPath, err := playbackpath.ParseManifestPath(opts.path)
	if err == nil && opts.player && mediatype.Ending(manifestPath.Decoded) == "mpd" {
		err = player.ErrManifest
	}
	if err != nil {
		return nil, "", fmt.Errorf("--path %q: %w", opts.path, err)
	}
	opts.path = manifestPath.Escaped
	if err := opts.claim(site.listen()); err != nil {
		return nil, "", fmt.Errorf("--from %q: %w; give a port that no other server has and that this user may listen on, like :8080", opts.from, err)
	}
	key, err := opts.signingKey()
	if err != nil {
		return nil, "", err
	}
	claims, err := signOptions{terminal: opts.terminal, video: opts.video, expires: opts.expires}.claims()
	if err != nil {
		return nil, "", err
	}
	if !claims.ExpiresAt.After(opts.now) {
		return nil, "", fmt.Errorf("--exp %q is in the past, so the URL would not play; give a time in the future, like 1h", opts.expires)
	}
	compact, err := token.Sign(claims, key)
	if err != nil {
		return nil, "", err
	}
	public, err := key.Public().JWK()
	if err != nil {
		return nil, "", err
	}
	if err := os.WriteFile(opts.publicKey, public, 0o600); err != nil {
		return nil, "", fmt.Errorf("giving the public key to the gate: %w", err)
	}
	if config, err = opts.caddyfile(site, origin); err != nil {
		return nil, "", err
	}
	opts.warnUser(site, origin)
	return config, opts.describe(site, origin, claims, compact), nil
}

// proxySite is the address at which viewers reach the gateway.
type proxySite struct {
	weborigin.Origin        // as in the printed URLs
	anyHost          bool   // the site answers to every host name
	bind             string // the address to listen on; "" for all
}

// parseProxySite reads --from. As in `caddy reverse-proxy`, a host means HTTPS
// and a port alone HTTP, unless there is a scheme. Unlike there, a site at a
// loopback address listens on that address alone.
func parseProxySite(text string) (site proxySite, err error) {
	var path string
	if site.Origin, path, err = parseServerAddress(text, true); err != nil {
		return site, err
	}
	address, _ := netip.ParseAddr(site.Host)
	if address.IsLoopback() || address.IsUnspecified() {
		site.bind = site.Host
	}
	site.anyHost = site.Host == "" || address.IsUnspecified()
	switch {
	case text == "":
		return site, errors.New("it is empty")
	case path != "" && path != "/":
		return site, fmt.Errorf("it has the path %q", path)
	case site.HTTPS && site.anyHost:
		return site, errors.New("a certificate for HTTPS needs a host name")
	case site.anyHost:
		site.Host = "localhost"
	}
	return site, nil
}

// listen returns the address that the gateway listens on.
func (s proxySite) listen() string { return net.JoinHostPort(s.bind, strconv.Itoa(int(s.Port))) }

// proxyOrigin is the server that has the videos.
type proxyOrigin struct {
	weborigin.Origin
	template string // the gate's origin_path
}

// parseProxyOrigin reads --to.
func parseProxyOrigin(text string) (origin proxyOrigin, err error) {
	var path string
	if origin.Origin, path, err = parseServerAddress(text, false); err != nil {
		return origin, err
	}
	origin.Host = cmp.Or(origin.Host, "localhost")
	template, err := playbackpath.ParseOriginPath(strings.TrimSuffix(path, "/") + "/" + playbackpath.VideoPlaceholder)
	if err != nil || strings.Contains(path, "{") {
		return origin, fmt.Errorf("the path %q is not that of a folder", path)
	}
	origin.template = template.String()
	return origin, nil
}

// parseServerAddress reads [<scheme>://][<host>][:<port>][<path>]. An address to
// listen on needs neither host nor port, and without a scheme it means HTTPS if
// it has a host name and no port of HTTP. Other addresses mean HTTP.
func parseServerAddress(text string, toListenOn bool) (o weborigin.Origin, path string, err error) {
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok {
		scheme, rest = "", text
	}
	end := strings.IndexByte(rest+"/", '/')
	if end == 0 && !toListenOn {
		return o, "", errors.New("it has no host")
	}
	name, port, err := weborigin.SplitHostPort(rest[:end])
	if err == nil && name != "" {
		if o.Host, err = weborigin.ParseHost(name); err != nil {
			err = fmt.Errorf("the host is not valid: %w", err)
		}
	}
	if err != nil {
		return o, "", err
	}
	address, _ := netip.ParseAddr(o.Host)
	switch scheme {
	case "":
		o.HTTPS = toListenOn && name != "" && !address.IsUnspecified() && port != weborigin.DefaultPort(false)
	case "http", "https":
		o.HTTPS = scheme == "https"
	default:
		return o, "", fmt.Errorf("%q is neither http nor https", scheme)
	}
	if o.Port = cmp.Or(port, weborigin.DefaultPort(o.HTTPS)); o.Port == weborigin.DefaultPort(!o.HTTPS) {
		return o, "", fmt.Errorf("port %d does not go with this scheme", o.Port)
	}
	return o, rest[end:], nil
}

// proxyCaddyfile is the gateway's config. The log format is there without an access
// log too, because errors in the log contain the request.
var proxyCaddyfile = template.Must(template.New("proxy").Funcs(template.FuncMap{"quote": quoteCaddyfile}).Parse(`{
	admin off
	persist_config off
	{{if not .HTTPS}}auto_https off{{end}}
	{{if .Debug}}debug{{end}}
	log {
		format signed_playback
		{{if not (or .Debug .AccessLog)}}level ERROR{{end}}
	}
	signed_playback {
		key_file {{quote .PublicKey}}
		{{with .GeoIPDatabase}}geoip_database {{quote .}}{{end}}
		{{with .AllowedOrigins}}allowed_origins{{range .}} {{quote .}}{{end}}{{end}}
	}
}
{{.Address}} {
	{{with .Bind}}bind {{.}}{{end}}
	{{if .AccessLog}}log{{end}}
	signed_playback {
		origin_path {{.OriginPath}}
		manifest {{.Path}}
		manifest_hosts {{.ManifestHost}}
		{{if .Player}}player {{with .HLSJS}}{{quote .}}{{end}}{{end}}
	}
	reverse_proxy {{.Upstream}}
}
`))

// quoteCaddyfile makes a value a single token of a Caddyfile. Between
// backquotes every character is literal, except for the placeholders
// that Caddy replaces before and after it splits the file into tokens.
func quoteCaddyfile(value string) (string, error) {
	if strings.ContainsAny(value, "`{}") || strings.ContainsFunc(value, unicode.IsControl) || !utf8.ValidString(value) {
		return "", fmt.Errorf("%q has a character that proxy cannot write into its config: a backquote, a brace, a control character or invalid UTF-8", value)
	}
	return "`" + value + "`", nil
}

// check reports a flag that would make the config invalid.
func (opts proxyOptions) check() error {
	for flag, value := range map[string]string{"--hls-js": opts.hlsJS, "--geoip-database": opts.geoIPDatabase, "TMPDIR": opts.publicKey} {
		if _, err := quoteCaddyfile(value); err != nil {
			return fmt.Errorf("%s: %w", flag, err)
		}
	}
	if opts.hlsJS != "" && !opts.player {
		return fmt.Errorf("--hls-js %q is for the player page; add --player", opts.hlsJS)
	}
	if _, err := player.Load(opts.hlsJS, playbackpath.DefaultManifest); err != nil {
		return fmt.Errorf("--hls-js %w", err)
	}
	if _, err := weborigin.Compile(opts.allowedOrigins); err != nil {
		return fmt.Errorf("--allowed-origins: %w; give [*.]host[:port], like *.example.com or localhost:3000", err)
	}
	if opts.geoIPDatabase != "" {
		if err := geo.New(zap.NewNop()).Open(geo.Country, opts.geoIPDatabase); err != nil {
			return fmt.Errorf("--geoip-database: %w; give a MaxMind DB with countries, like GeoLite2-Country.mmdb", err)
		}
	}
	return nil
}

// caddyfile returns the gateway's config.
func (opts proxyOptions) caddyfile(site proxySite, origin proxyOrigin) ([]byte, error) {
	address := site.String()
	if site.anyHost {
		address = "http://:" + strconv.Itoa(int(site.Port))
	}
	var text bytes.Buffer
	err := proxyCaddyfile.Execute(&text, map[string]any{
		"HTTPS": site.HTTPS, "Address": address, "Bind": site.bind,
		"Upstream": origin.String(), "ManifestHost": origin.Address(), "OriginPath": origin.template, "Path": opts.path,
		"PublicKey": opts.publicKey, "AllowedOrigins": opts.allowedOrigins, "GeoIPDatabase": opts.geoIPDatabase,
		"Player": opts.player, "HLSJS": opts.hlsJS, "AccessLog": opts.accessLog, "Debug": opts.debug,
	})
	return text.Bytes(), err
}

func (opts proxyOptions) signingKey() (*token.SigningKey, error) {
	if opts.key == "" {
		return token.GenerateSigningKey("")
	}
	key, err := readSigningKey(opts.key, "", opts.in)
	if err != nil {
		return nil, fmt.Errorf("%w; `caddy signed-playback keygen` makes a key", err)
	}
	return key, nil
}

// warnUser prints what may surprise the user.
func (opts proxyOptions) warnUser(site proxySite, origin proxyOrigin) {
	if opts.key == "" {
		opts.warn("there is no --key, so proxy signs with a new key that is in memory only: its URLs end with this process")
	}
	if opts.player && opts.hlsJS == "" {
		opts.warn("without --hls-js, the player page plays only in Safari, and in Chrome from 142 on; this gets the file: %s", player.GetHLSJS)
	}
	if site.anyHost && len(opts.allowedOrigins) > 0 {
		opts.warn("--from %q answers to every host name, so a page under any name that leads here counts as allowed; give the host name", opts.from)
	}
	if err := opts.reach(origin.Origin); err != nil {
		opts.warn("--to %q does not answer (%v): viewers get status 502 until it does", opts.to, err)
	}
}

// describe returns the addresses, a first URL and how to sign more.
func (opts proxyOptions) describe(site proxySite, origin proxyOrigin, claims token.Claims, compact string) string {
	out, base := new(strings.Builder), site.String()
	fmt.Fprintf(out, "\nThe gate listens on %s. Viewers ask it for\n  %s/<token>/<path>\n", site.listen(), base)
	fmt.Fprintf(out, "and it asks the origin for\n  %s%s/<path>\n\n",
		origin.String(), strings.ReplaceAll(origin.template, playbackpath.VideoPlaceholder, "<video>"))

	fmt.Fprintf(out, "The video %s plays until %s:\n", claims.VideoID, relativeTime(claims.ExpiresAt, opts.now))
	if opts.player {
		fmt.Fprintf(out, "  Page  %s/%s/%s\n", base, compact, playbackpath.IframeSuffix)
	}
	fmt.Fprintf(out, "  HLS   %s/%s/%s\n", base, compact, opts.path)
	if len(opts.allowedOrigins) > 0 {
		example, _ := weborigin.ParsePattern(opts.allowedOrigins[0]) // which check has parsed
		fmt.Fprintf(out, "It plays on the allowed sites only, the page in an iframe there. With curl, add\n  -H 'Origin: %s'\n", example.Example())
	}

	how := "Sign more with"
	if opts.key == "" {
		fmt.Fprint(out, "\nTo sign more, make a key and start again with --key key.json:\n  caddy signed-playback keygen -o key.json\n")
		how = "Then sign with"
	}
	fmt.Fprintf(out, "\n%s\n  caddy signed-playback sign --key %s --sub %s --url %s", how, shellWord(cmp.Or(opts.key, "key.json")), claims.VideoID, shellWord(base))
	if opts.path != playbackpath.DefaultManifest {
		fmt.Fprintf(out, " --path %s", shellWord(opts.path))
	}
	fmt.Fprint(out, "\nStop with Ctrl-C.\n\n")
	return out.String()
}

var plainShellWord = regexp.MustCompile(`^[A-Za-z0-9_./:=+-]+$`)

// shellWord quotes a word that a shell would split or expand.
func shellWord(text string) string {
	if plainShellWord.MatchString(text) {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// claimAddress reports why a server cannot listen on an address. Caddy itself
// would share a port with another Caddy, and each would get some of the
// requests.
func claimAddress(address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	return listener.Close()
}

// reachOrigin reports why a connection to an origin fails. An origin that is down
// delays the start by at most two seconds.
func reachOrigin(origin weborigin.Origin) error {
	return connects(context.Background(), "tcp", origin.Address(), origin.HTTPS, 2*time.Second)
}
