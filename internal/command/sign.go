package command

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/signed-playback/caddy-signed-playback/internal/accessrules"
	"github.com/signed-playback/caddy-signed-playback/internal/geo"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/redact"
	"github.com/signed-playback/caddy-signed-playback/internal/verification"
	"github.com/signed-playback/caddy-signed-playback/token"
)

func signCommand() *cobra.Command {
	var opts signOptions
	cmd := &cobra.Command{
		Use:   "sign --key <file> --sub <video> [--kid <id>] [--exp <time>] [--nbf <time>] [--downloadable] [--rules <json>] [--aud <value>] [--iss <value>] [--uid <viewer> [--viewer-claim <name>]] [--climit <number>] [--start-by <time>] [--url <base> [--path <manifest>]]",
		Short: "Signs a token or a playback URL",
		Long: `
Signs a token for a video and prints it. With --url it prints the URL of the
video's manifest:

	$ caddy signed-playback sign --key key.json --sub demo --exp 12h --url https://media.example.com
	https://media.example.com/eyJhbGciOiJSUzI1NiIsImtpZCI6…/manifest/video.m3u8

The key is a file, or - for standard input. It has one of these forms: the output
of keygen, a private JWK, a PEM, or the pem or jwk value of the keys API.

A time is a duration from now (1h, -5m), Unix seconds, or RFC 3339. Rules say who
may play, by address and country:

	$ caddy signed-playback sign --key key.json --sub demo \
		--rules '[{"type":"ip.geoip.country","country":["GB"],"action":"allow"},{"type":"any","action":"block"}]'`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts.terminal = terminalOf(cmd)
			return opts.sign()
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&opts.key, "key", "", "the `file` with the private key, or - for standard input")
	flags.StringVar(&opts.keyID, "kid", "", "the key's `id`, if the key has none (default: the name of its file without the ending)")
	flags.StringVar(&opts.video, "sub", "", "the `video` id")
	flags.StringVar(&opts.expires, "exp", "1h", "the `time` when the token expires")
	flags.StringVar(&opts.notBefore, "nbf", "", "the `time` from which the token is valid (default: at once)")
	flags.BoolVar(&opts.downloadable, "downloadable", false, "also allow downloads")
	flags.StringVar(&opts.rules, "rules", "", "access rules: a `JSON` array, or @ and the name of a file with one")
	flags.StringVar(&opts.audience, "aud", "", "the `value` of the claim aud, if the gate has the option audience")
	flags.StringVar(&opts.issuer, "iss", "", "the `value` of the claim iss, if the gate has the option issuer")
	flags.StringVar(&opts.viewer, "uid", "", "the `viewer`, for revocations and session limits (default: none)")
	flags.StringVar(&opts.viewerClaim, "viewer-claim", "uid", "the `name` of the claim that --uid writes, if the gate has the option viewer_claim")
	flags.StringVar(&opts.sessionLimit, "climit", "", "the `number` of playback sessions that the viewer may have at a time (default: no limit)")
	flags.StringVar(&opts.startBy, "start-by", "", "the `time` from which no playback session begins (default: none)")
	flags.StringVar(&opts.baseURL, "url", "", "print a playback URL below this `address` of the gate")
	flags.StringVar(&opts.path, "path", playbackpath.DefaultManifest, "the `manifest` that the playback URL leads to")
	return cmd
}

type signOptions struct {
	terminal
	key, keyID         string
	video              string
	expires, notBefore string
	downloadable       bool
	rules              string
	audience, issuer   string
	viewer             string
	viewerClaim        string
	startBy            string
	sessionLimit       string
	baseURL, path      string
}

func (opts signOptions) sign() error {
	if opts.key == "" {
		return errors.New("--key is missing: name the file with the private key; `caddy signed-playback keygen -o key.json` makes one")
	}
	if opts.video == "" {
		return errors.New("--sub is missing: name the video that the token opens")
	}
	key, err := readSigningKey(opts.key, opts.keyID, opts.in)
	if err != nil {
		return err
	}
	claims, err := opts.claims()
	if err != nil {
		return err
	}
	compact, err := token.Sign(claims, key)
	if err != nil {
		return err
	}
	if !claims.ExpiresAt.After(opts.now) {
		opts.warn("--exp %q is in the past, so the token does not play", opts.expires)
	}
	if !claims.StartBy.IsZero() && !claims.StartBy.After(opts.now) {
		opts.warn("--start-by %q is in the past, so no session begins with the token", opts.startBy)
	}
	rules, _ := accessrules.CompileClaim(claims.AccessRules) // which readRules has compiled
	for _, warning := range rules.Warnings(anyDatabase) {
		opts.warn("--rules: %s", warning)
	}
	if opts.baseURL == "" && opts.path != playbackpath.DefaultManifest && opts.path != "" {
		return fmt.Errorf("--path %q is a part of the playback URL; add --url", opts.path)
	}
	if opts.baseURL == "" {
		_, err = fmt.Fprintln(opts.out, compact)
		return err
	}
	address, err := opts.playbackURL(compact)
	if err == nil {
		_, err = fmt.Fprintln(opts.out, address)
	}
	return err
}

// anyDatabase assumes that the gateway has a database of each fact.
func anyDatabase(geo.Fact) bool { return true }

// playbackURL returns the URL of the manifest under a token.
func (opts signOptions) playbackURL(compact string) (*url.URL, error) {
	manifestPath, err := playbackpath.ParseManifestPath(opts.path)
	if err != nil {
		return nil, fmt.Errorf("--path %q: %w", opts.path, err)
	}
	base := parseBaseURL(opts.baseURL)
	if base == nil {
		return nil, fmt.Errorf("--url %q: give an address like https://media.example.com", opts.baseURL)
	}
	if redact.Tokens(base.Path) != base.Path {
		return nil, fmt.Errorf("--url %q: it contains a token already; give the address of the gate, like https://media.example.com", opts.baseURL)
	}
	return base.JoinPath(compact, manifestPath.Escaped), nil
}

// parseBaseURL reads the address of a gate or an API, nil if it is not one.
func parseBaseURL(text string) *url.URL {
	base, err := url.Parse(text)
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "" || base.User != nil || base.RawQuery != "" || base.Fragment != "" {
		return nil
	}
	return base
}

// readSigningKey reads the key in a file or on standard input. keyID is the value of --kid, "" for
// none.
func readSigningKey(path, keyID string, in io.Reader) (*token.SigningKey, error) {
	data, name, err := readKeyFile(path, in)
	if err != nil {
		return nil, err
	}
	key, err := token.ParseSigningKey(data, cmp.Or(keyID, name))
	if err != nil {
		return nil, fmt.Errorf("--key %q: %w", path, err)
	}
	if keyID != "" && keyID != key.ID() {
		return nil, fmt.Errorf("--kid %q: the key in %q has the `kid` %q; leave --kid out", keyID, path, key.ID())
	}
	return key, nil
}

// readKeyFile returns the content of a key file, and the id of a key in it that
// has no `kid`.
func readKeyFile(path string, in io.Reader) (data []byte, id string, err error) {
	if path == "-" {
		data, err = io.ReadAll(in)
		return data, "", err
	}
	if data, err = os.ReadFile(path); err != nil {
		return nil, "", fmt.Errorf("--key: %w", err)
	}
	return data, verification.KeyIDOfFile(path), nil
}

func (opts signOptions) claims() (claims token.Claims, err error) {
	if !token.ValidVideoID(opts.video) {
		return token.Claims{}, fmt.Errorf("--sub %q: %w", opts.video, playbackpath.ErrVideoID)
	}
	claims = token.Claims{VideoID: opts.video, Downloadable: opts.downloadable, Issuer: opts.issuer}
	if opts.audience != "" {
		claims.Audience = []string{opts.audience}
	}
	claims.Viewer, claims.ViewerClaim, claims.IssuedAt = opts.viewer, opts.viewerClaim, opts.now
	if opts.viewer != "" {
		if _, err := token.NewViewerClaim(opts.viewerClaim); err != nil {
			return claims, fmt.Errorf("--viewer-claim %w", err)
		}
	}
	if opts.sessionLimit != "" {
		if claims.SessionLimit, err = strconv.Atoi(opts.sessionLimit); err != nil || claims.SessionLimit < 1 {
			return claims, fmt.Errorf("--climit %q: want a whole number from 1 on", opts.sessionLimit)
		}
	}
	for _, date := range []struct {
		flag, value string
		claim       *time.Time
	}{{"exp", opts.expires, &claims.ExpiresAt}, {"start-by", opts.startBy, &claims.StartBy}, {"nbf", opts.notBefore, &claims.NotBefore}} {
		if date.value == "" {
			continue
		}
		if *date.claim, err = parseTime(date.value, opts.now); err != nil {
			return claims, fmt.Errorf("--%s %w", date.flag, err)
		}
	}
	if opts.notBefore != "" && !claims.NotBefore.Before(claims.ExpiresAt) {
		return claims, fmt.Errorf("--nbf %q is not before --exp %q", opts.notBefore, opts.expires)
	}
	claims.AccessRules, err = readRules(opts.rules)
	return claims, err
}

// readRules reads the access rules of --rules, "" for none.
func readRules(text string) (rules []byte, err error) {
	if text == "" {
		return nil, nil
	}
	rules = []byte(text)
	if path, isFile := strings.CutPrefix(text, "@"); isFile {
		if rules, err = os.ReadFile(path); err != nil {
			return nil, fmt.Errorf("--rules: %w", err)
		}
	}
	if _, err := accessrules.CompileClaim(rules); err != nil {
		if !strings.ContainsAny(text, "@[{") {
			return nil, fmt.Errorf("--rules %q: want a JSON array; for a file write @%s", text, text)
		}
		return nil, fmt.Errorf("--rules: %w", err)
	}
	return rules, nil
}
