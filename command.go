package signedplayback

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/signed-playback/caddy-signed-playback/internal/redact"
	"github.com/signed-playback/caddy-signed-playback/token"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "signed-playback",
		Short: "Makes keys, signs playback URLs and explains refusals",
		Long: `
Makes keys and signs playback URLs with them, shows the content of a token,
explains the decision of a gate about a request, and runs a gate without a config
file. No command needs a running server.`,
		CobraFunc: func(cmd *cobra.Command) {
			cmd.Args = cobra.NoArgs
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
			cmd.AddCommand(keygenCommand(), signCommand(), inspectCommand(), explainCommand(), proxyCommand())
		},
	})
}

func keygenCommand() *cobra.Command {
	keyID := ""
	cmd := &cobra.Command{
		Use:   "keygen [--kid <id>]",
		Short: "Makes a key pair",
		Long: `
Makes an RSA-2048 key pair and prints it as JSON:

	$ (umask 077; caddy signed-playback keygen > key.json)
	$ cat key.json
	{
	  "id": "6b2d0c4a9f5e4d7c8b1a3e5f7d9c0b2a",
	  "pem": "LS0tLS1CRUdJTi…",
	  "jwk": "eyJkIjoiQmZs…",
	  "jwks": {"keys": [{"alg": "RS256", "e": "AQAB", …}]}
	}
	$ jq .jwks key.json > public.json

key.json contains the private key. The gate needs only the public key, which is
the member jwks. The members id, pem and jwk have the form in which the keys API
returns a new key.

Both --key of sign and key_file of the gate take the whole file; the gate drops
the private key.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return keygen(keyID, cmd.OutOrStdout()) },
	}
	cmd.Flags().StringVar(&keyID, "kid", "", "the key's `id` (default: 32 random hexadecimal digits)")
	return cmd
}

// generatedKey is the output of keygen: a key in the form of the keys API, and
// its public key.
type generatedKey struct {
	ID   string       `json:"id"`
	PEM  string       `json:"pem"`
	JWK  string       `json:"jwk"`
	JWKS publicKeySet `json:"jwks"`
}

// publicKeySet is a JWKS (RFC 7517 section 5).
type publicKeySet struct {
	Keys []json.RawMessage `json:"keys"`
}

func keygen(keyID string, out io.Writer) error {
	key, err := token.GenerateSigningKey(keyID)
	if err != nil {
		return err
	}
	generated := generatedKey{ID: key.ID(), PEM: key.PEM()}
	if generated.JWK, err = key.JWK(); err != nil {
		return err
	}
	public, err := key.Public().JWK()
	if err != nil {
		return err
	}
	generated.JWKS.Keys = []json.RawMessage{public}
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(generated)
}

func signCommand() *cobra.Command {
	opts := signOptions{now: time.Now}
	cmd := &cobra.Command{
		Use:   "sign --key <file> --sub <video> [--kid <id>] [--exp <time>] [--nbf <time>] [--downloadable] [--rules <json>] [--aud <value>] [--iss <value>] [--url <base> [--path <manifest>]]",
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
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts.stdin = cmd.InOrStdin()
			return sign(opts, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&opts.key, "key", "", "the `file` with the private key, or - for standard input")
	flags.StringVar(&opts.keyID, "kid", "", "the key's `id`, if the key has none (default: the name of its file without the ending)")
	flags.StringVar(&opts.video, "sub", "", "the `video` id")
	flags.StringVar(&opts.expires, "exp", "1h", "the `time` when the token expires")
	flags.StringVar(&opts.notBefore, "nbf", "", "the `time` before which the token does not work (default: it works at once)")
	flags.BoolVar(&opts.downloadable, "downloadable", false, "also allow downloads")
	flags.StringVar(&opts.rules, "rules", "", "access rules: a `JSON` array, or @ and the name of a file with one")
	flags.StringVar(&opts.audience, "aud", "", "the `value` of the claim aud, if the gate has the option audience")
	flags.StringVar(&opts.issuer, "iss", "", "the `value` of the claim iss, if the gate has the option issuer")
	flags.StringVar(&opts.baseURL, "url", "", "print a playback URL below this `address` of the gate")
	flags.StringVar(&opts.path, "path", defaultManifest, "the `manifest` that the playback URL leads to")
	return cmd
}

type signOptions struct {
	key, keyID         string
	video              string
	expires, notBefore string
	downloadable       bool
	rules              string
	audience, issuer   string
	baseURL, path      string
	stdin              io.Reader
	now                func() time.Time
}

func sign(opts signOptions, out io.Writer) error {
	if opts.key == "" || opts.video == "" {
		return errors.New("sign needs --key and --sub")
	}
	key, err := readSigningKey(opts)
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
	if opts.baseURL == "" {
		_, err = fmt.Fprintln(out, compact)
		return err
	}
	manifestPath, err := parseManifestPath(opts.path)
	if err != nil {
		return fmt.Errorf("--path %q: %w", opts.path, err)
	}
	base, err := url.Parse(opts.baseURL)
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "" || base.RawQuery != "" || base.Fragment != "" {
		return fmt.Errorf("--url %q: give an address like https://media.example.com", opts.baseURL)
	}
	_, err = fmt.Fprintln(out, base.JoinPath(compact, manifestPath.escaped))
	return err
}

func readSigningKey(opts signOptions) (*token.SigningKey, error) {
	data, name, err := readKeyFile(opts.key, opts.stdin)
	if err != nil {
		return nil, err
	}
	if opts.keyID != "" {
		name = opts.keyID
	}
	key, err := token.ParseSigningKey(data, name)
	if err != nil {
		return nil, fmt.Errorf("--key %q: %w", opts.key, err)
	}
	if opts.keyID != "" && opts.keyID != key.ID() {
		return nil, fmt.Errorf("--kid %q: the key in %q has the `kid` %q; leave --kid out", opts.keyID, opts.key, key.ID())
	}
	return key, nil
}

// readKeyFile returns the content of a key file, and the id of a key in it that
// has no `kid`.
func readKeyFile(path string, stdin io.Reader) (data []byte, id string, err error) {
	if path == "-" {
		data, err = io.ReadAll(stdin)
		return data, "", err
	}
	data, err = os.ReadFile(path)
	return data, keyIDOfFile(path), err
}

func (opts signOptions) claims() (claims token.Claims, err error) {
	if !token.ValidVideoID(opts.video) {
		return token.Claims{}, fmt.Errorf("--sub %q: %w", opts.video, errVideoID)
	}
	claims = token.Claims{VideoID: opts.video, Downloadable: opts.downloadable, Issuer: opts.issuer}
	if opts.audience != "" {
		claims.Audience = []string{opts.audience}
	}
	if claims.ExpiresAt, err = parseTime(opts.expires, opts.now()); err != nil {
		return claims, fmt.Errorf("--exp %w", err)
	}
	if opts.notBefore != "" {
		if claims.NotBefore, err = parseTime(opts.notBefore, opts.now()); err != nil {
			return claims, fmt.Errorf("--nbf %w", err)
		}
		if !claims.NotBefore.Before(claims.ExpiresAt) {
			return claims, fmt.Errorf("--nbf %q is not before --exp %q", opts.notBefore, opts.expires)
		}
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
	if _, err := compileRules(rules); err != nil {
		if _, noFile := os.Stat(text); noFile == nil {
			return nil, fmt.Errorf("--rules: %w; for the file of this name write @%s", err, text)
		}
		return nil, fmt.Errorf("--rules: %w", err)
	}
	return rules, nil
}

func inspectCommand() *cobra.Command {
	opts := inspectOptions{now: time.Now}
	cmd := &cobra.Command{
		Use:   "inspect <token or URL> [--key <file>]",
		Short: "Shows the content of a token",
		Long: `
Shows the header and the claims of a token. Give the token alone, in a playback
URL, or as - on standard input. With --key, a file in any form that key_file
takes, inspect also verifies the token as the gate does:

	$ caddy signed-playback inspect https://media.example.com/eyJhbGci… --key public.json
	token id:   5d1b0a3c8f2e6479
	header:     {"alg":"RS256","kid":"6b2d0c4a9f5e4d7c8b1a3e5f7d9c0b2a"}
	payload:    {"sub":"demo","kid":"6b2d0c4a9f5e4d7c8b1a3e5f7d9c0b2a","exp":1896091200}
	video:      demo
	key id:     6b2d0c4a9f5e4d7c8b1a3e5f7d9c0b2a
	expires:    2030-01-31T12:00:00Z (in 11h59m58s)
	rules:      0
	signature:  valid, and so are the dates

The exit status is 0 if the token is well-formed and, with --key, verifies now;
otherwise it is 1.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.token, opts.stdin = args[0], cmd.InOrStdin()
			return inspect(opts, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&opts.key, "key", "", "the `file` with the verification key, or - for standard input")
	return cmd
}

type inspectOptions struct {
	token string
	key   string
	stdin io.Reader
	now   func() time.Time
}

// inspect prints the content of a token, as far as it can be read. Its error is
// the reason why the gate would refuse the token.
func inspect(opts inspectOptions, out io.Writer) error {
	compact, err := findToken(opts)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "token id:   %s\n", redact.TokenID(compact))
	parsed, err := token.Parse(compact)
	if err != nil {
		return err
	}
	header, payload := parsed.Documents()
	claims := parsed.Unverified()
	now := opts.now()
	fmt.Fprintf(out, "header:     %s\n", header)
	fmt.Fprintf(out, "payload:    %s\n", payload)
	fmt.Fprintf(out, "video:      %s\n", claims.VideoID)
	fmt.Fprintf(out, "key id:     %s\n", claims.KeyID)
	fmt.Fprintf(out, "expires:    %s\n", relativeTime(claims.ExpiresAt, now))
	if !claims.NotBefore.IsZero() {
		fmt.Fprintf(out, "not before: %s\n", relativeTime(claims.NotBefore, now))
	}
	if claims.Audience != nil {
		fmt.Fprintf(out, "audience:   %q\n", claims.Audience)
	}
	if claims.Issuer != "" {
		fmt.Fprintf(out, "issuer:     %q\n", claims.Issuer)
	}
	rules, err := compileRules(claims.AccessRules)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "rules:      %d\n", len(rules))
	if opts.key == "" {
		fmt.Fprintln(out, "signature:  not checked; give --key")
		return nil
	}
	keys, err := readKeySet(opts)
	if err != nil {
		return err
	}
	_, err = token.Verify(compact, keys, now, token.Policy{Leeway: defaultLeeway})
	if errors.Is(err, token.ErrKeyUnknown) {
		return fmt.Errorf("%w: the token's key id is %q, and --key has %q", err, claims.KeyID, keys.IDs())
	}
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "signature:  valid, and so are the dates")
	return nil
}

func readKeySet(opts inspectOptions) (*token.KeySet, error) {
	data, id, err := readKeyFile(opts.key, opts.stdin)
	if err != nil {
		return nil, fmt.Errorf("--key: %w", err)
	}
	keys, err := token.ParsePublicKeys(data, id)
	if err != nil {
		return nil, fmt.Errorf("--key %q: %w", opts.key, err)
	}
	return token.NewKeySet(keys...)
}

// findToken returns the token on the command line or on standard input: the
// whole text, or the segment of a URL's path that has two dots.
func findToken(opts inspectOptions) (string, error) {
	text := opts.token
	if text == "-" {
		if opts.key == "-" {
			return "", errors.New("the token and --key cannot both come from standard input")
		}
		data, err := io.ReadAll(io.LimitReader(opts.stdin, 4*token.MaxLength))
		if err != nil {
			return "", err
		}
		text = string(data)
	}
	text = strings.TrimSpace(text)
	if !strings.Contains(text, "/") {
		return text, nil
	}
	if _, rest, ok := strings.Cut(text, "://"); ok {
		_, text, _ = strings.Cut(rest, "/")
	}
	path, _, _ := strings.Cut(text, "?")
	var found string
	for segment := range strings.SplitSeq(path, "/") {
		if strings.Count(segment, ".") != 2 || segment == ".." {
			continue
		}
		if _, err := token.Parse(segment); err == nil {
			return segment, nil
		}
		// This may be the host of a URL without its scheme, or a malformed
		// token that the user asks about.
		found = cmp.Or(found, segment)
	}
	if found == "" {
		return "", errors.New("the URL contains no token: no segment of its path has exactly two dots")
	}
	return found, nil
}

func relativeTime(t, now time.Time) string {
	distance := t.Sub(now).Round(time.Second)
	if distance < 0 {
		return fmt.Sprintf("%s (%s ago)", t.UTC().Format(time.RFC3339), -distance)
	}
	return fmt.Sprintf("%s (in %s)", t.UTC().Format(time.RFC3339), distance)
}

// parseTime reads a duration from now, Unix seconds or RFC 3339.
func parseTime(text string, now time.Time) (time.Time, error) {
	if duration, err := caddy.ParseDuration(text); err == nil {
		return now.Add(duration), nil
	}
	if seconds, err := strconv.ParseInt(text, 10, 64); err == nil {
		const year2001 = 1_000_000_000
		if seconds < year2001 {
			return time.Time{}, fmt.Errorf("%q: as Unix seconds this is before 2001; for a duration write %ss", text, text)
		}
		return time.Unix(seconds, 0), nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	return time.Time{}, fmt.Errorf("%q: give a duration like 1h, Unix seconds, or a time like 2030-01-31T12:00:00Z", text)
}
