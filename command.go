package signedplayback

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/signed-playback/caddy-signed-playback/internal/accessrules"
	"github.com/signed-playback/caddy-signed-playback/internal/geo"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/redact"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
	"github.com/signed-playback/caddy-signed-playback/internal/verification"
	"github.com/signed-playback/caddy-signed-playback/token"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "signed-playback",
		Short: "Makes keys, signs playback URLs and explains refusals",
		Long: `
Makes keys, signs playback URLs with them, shows the content of tokens, and
revokes them. Explains why a gate allows or refuses a request, checks a deployment,
and runs a gate without a config file. Only revoke and health need a running server.`,
		CobraFunc: func(cmd *cobra.Command) {
			cmd.Use, cmd.Args = cmd.Name(), cobra.ArbitraryArgs
			cmd.SetHelpTemplate(`{{with or .Long .Short}}{{. | trimTrailingWhitespaces}}

{{end}}{{if or .Runnable .HasSubCommands}}{{.UsageString}}{{end}}
The documentation is at
https://github.com/signed-playback/caddy-signed-playback
`)
			cmd.RunE = func(cmd *cobra.Command, args []string) error {
				if len(args) > 0 {
					return unknownCommand(cmd, args[0])
				}
				return cmd.Help()
			}
			cmd.AddCommand(keygenCommand(), signCommand(), inspectCommand(), explainCommand(), doctorCommand(), healthCommand(), revokeCommand(), proxyCommand(), versionCommand())
			for _, each := range append(cmd.Commands(), cmd) {
				prepare(each)
			}
		},
	})
}

// prepare gives a command what all commands have in common: how they refuse flags and
// arguments, and how they fail.
func prepare(cmd *cobra.Command) {
	cmd.DisableFlagsInUseLine = true
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return fail(cmd, withMeantFlag(cmd, err)) })
	args, run := cmd.Args, cmd.RunE
	cmd.Args = func(cmd *cobra.Command, words []string) error { return fail(cmd, args(cmd, words)) }
	cmd.RunE = func(cmd *cobra.Command, words []string) error {
		err := refuseEmptyFlags(cmd)
		if err == nil {
			err = run(cmd, words)
		}
		return fail(cmd, err)
	}
}

func unknownCommand(cmd *cobra.Command, word string) error {
	names := make([]string, 0, len(cmd.Commands()))
	for _, sub := range cmd.Commands() {
		names = append(names, sub.Name())
	}
	hint := ""
	if meant := closest(word, names); meant != "" {
		hint = fmt.Sprintf("; did you mean %q?", meant)
	}
	return fmt.Errorf("unknown command %q%s; known are %s", word, hint, strings.Join(names, ", "))
}

// withMeantFlag adds the flag that the user has probably meant by an unknown one.
func withMeantFlag(cmd *cobra.Command, err error) error {
	unknown, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok {
		return err
	}
	var names []string
	cmd.Flags().VisitAll(func(flag *pflag.Flag) { names = append(names, flag.Name) })
	word, _, _ := strings.Cut(cmp.Or(unknown.GetSpecifiedShortnames(), unknown.GetSpecifiedName()), "=")
	if meant := closest(word, names); meant != "" {
		return fmt.Errorf("%w; did you mean --%s?", err, meant)
	}
	return fmt.Errorf("%w; known are --%s", err, strings.Join(names, ", --"))
}

// refuseEmptyFlags refuses --rules "$RULES" without that variable: a token without
// the rules would play everywhere.
func refuseEmptyFlags(cmd *cobra.Command) (err error) {
	cmd.Flags().Visit(func(flag *pflag.Flag) {
		if flag.Value.String() == "" {
			err = fmt.Errorf("--%s \"\": it is empty; give it a value or leave it out", flag.Name)
		}
	})
	return err
}

// fail prints the error of a command and sets the exit status: 1 for a request or a
// token that is refused, 2 for other errors. It prints no token, so that a URL in the
// wrong place does not get into terminals and tickets.
func fail(cmd *cobra.Command, err error) error {
	if err == nil {
		return nil
	}
	cmd.SilenceErrors = true
	if !errors.Is(err, errRefused) { // which is explained already
		cmd.PrintErrln("Error:", redact.Tokens(err.Error()))
	}
	if _, refused := errors.AsType[*refusal.Error](err); refused || errors.Is(err, errRefused) {
		return err
	}
	return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) { return 2, nil })(cmd, nil)
}

// noArguments refuses arguments of a command that takes flags alone.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%s takes no argument, not %q: write each value after its flag", cmd.Name(), redact.Each(args))
	}
	return nil
}

// oneURL returns the URL of a command, which needs no --url.
func oneURL(cmd *cobra.Command, flag string, args []string) (string, error) {
	switch {
	case len(args) > 1 || len(args) == 1 && flag != "":
		return "", fmt.Errorf("%s takes one URL, not also %q; quote a URL with & in it", cmd.Name(), redact.Each(args))
	case len(args) == 1:
		return args[0], nil
	case flag == "":
		return "", fmt.Errorf("the URL is missing: %s", cmd.UseLine())
	}
	return flag, nil
}

// writeJSON writes a value as users read it.
func writeJSON(out io.Writer, value any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(value)
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Prints the version of this module",
		Long:  "\nPrints the version of this module, and of Caddy.",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, full := caddy.Version()
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s (Caddy %s)\n", moduleVersion(), full)
			return err
		},
	}
}

// moduleVersion returns the version of this module in the binary: the required version,
// or the commit if the binary was built in the repository itself.
func moduleVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, module := range append(info.Deps, &info.Main) {
		if module.Path == modulePath {
			if module.Replace != nil {
				module = module.Replace
			}
			return cmp.Or(module.Version, "(devel)")
		}
	}
	return "unknown"
}

const modulePath = "github.com/signed-playback/caddy-signed-playback"

func keygenCommand() *cobra.Command {
	var opts keygenOptions
	cmd := &cobra.Command{
		Use:   "keygen [--kid <id>] [--output <file>] [--public <file>]",
		Short: "Makes a key pair",
		Long: `
Makes an RSA-2048 key pair. Your back end signs with the private key. The gate
needs only the public key, as key_file:

	$ caddy signed-playback keygen -o key.json --public public.json

keygen does not overwrite files, and only you can read the new ones (mode 0600).
If the gate runs as another user, let it read the public file. The private file has
the members id, pem and jwk, as the keys API returns them, and jwks, which is the
content of the public file. Without -o, keygen prints the private file.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return keygen(opts, cmd.OutOrStdout()) },
	}
	flags := cmd.Flags()
	flags.StringVar(&opts.keyID, "kid", "", "the key's `id` (default: 32 random hexadecimal digits)")
	flags.StringVarP(&opts.output, "output", "o", "", "the new `file` for the private key (default: standard output)")
	flags.StringVar(&opts.public, "public", "", "the new `file` for the public key, a JWKS (default: none)")
	return cmd
}

type keygenOptions struct{ keyID, output, public string }

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

func keygen(opts keygenOptions, out io.Writer) error {
	if opts.output != "" && opts.output == opts.public {
		return fmt.Errorf("--output and --public are both %q; the private and the public key need a file each", opts.output)
	}
	key, err := token.GenerateSigningKey(opts.keyID)
	if err != nil {
		return fmt.Errorf("--kid: %w", err)
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
	if opts.public != "" {
		if err := writeNewFile(opts.public, generated.JWKS); err != nil {
			return fmt.Errorf("--public %q: %w", opts.public, err)
		}
	}
	if opts.output == "" {
		return writeJSON(out, generated)
	}
	if err := writeNewFile(opts.output, generated); err != nil {
		if opts.public != "" {
			_ = os.Remove(opts.public)
		}
		return fmt.Errorf("--output %q: %w", opts.output, err)
	}
	return nil
}

// writeNewFile writes a value as JSON to a file that does not exist.
func writeNewFile(path string, value any) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return errors.New("the file exists, and its key may be in use; name a new file")
	}
	if err != nil {
		return err
	}
	if err := errors.Join(writeJSON(file, value), file.Close()); err != nil {
		_ = os.Remove(path)
		return err
	}
	return nil
}

func signCommand() *cobra.Command {
	opts := signOptions{now: time.Now}
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
			opts.stdin, opts.warnings = cmd.InOrStdin(), cmd.ErrOrStderr()
			return sign(opts, cmd.OutOrStdout())
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
	stdin              io.Reader
	warnings           io.Writer
	now                func() time.Time
}

func sign(opts signOptions, out io.Writer) error {
	if opts.key == "" {
		return errors.New("--key is missing: name the file with the private key; `caddy signed-playback keygen -o key.json` makes one")
	}
	if opts.video == "" {
		return errors.New("--sub is missing: name the video that the token opens")
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
	if !claims.ExpiresAt.After(opts.now()) {
		fmt.Fprintf(opts.warnings, "warning: --exp %q is in the past, so the token does not play\n", opts.expires)
	}
	if !claims.StartBy.IsZero() && !claims.StartBy.After(opts.now()) {
		fmt.Fprintf(opts.warnings, "warning: --start-by %q is in the past, so no session begins with the token\n", opts.startBy)
	}
	rules, err := accessrules.CompileClaim(claims.AccessRules)
	if err != nil {
		return err
	}
	for _, warning := range rules.Warnings(anyDatabase) {
		fmt.Fprintf(opts.warnings, "warning: --rules: %s\n", warning)
	}
	if opts.baseURL == "" && opts.path != playbackpath.DefaultManifest && opts.path != "" {
		return fmt.Errorf("--path %q is a part of the playback URL; add --url", opts.path)
	}
	if opts.baseURL == "" {
		_, err = fmt.Fprintln(out, compact)
		return err
	}
	address, err := opts.playbackURL(compact)
	if err == nil {
		_, err = fmt.Fprintln(out, address)
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
	base, err := url.Parse(opts.baseURL)
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "" || base.User != nil || base.RawQuery != "" || base.Fragment != "" {
		return nil, fmt.Errorf("--url %q: give an address like https://media.example.com", opts.baseURL)
	}
	if redact.Tokens(base.Path) != base.Path {
		return nil, fmt.Errorf("--url %q: it contains a token already; give the address of the gate, like https://media.example.com", opts.baseURL)
	}
	return base.JoinPath(compact, manifestPath.Escaped), nil
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
	if data, err = os.ReadFile(path); err != nil {
		return nil, "", fmt.Errorf("--key: %w", err)
	}
	return data, verification.KeyIDOfFile(path), nil
}

func (opts signOptions) claims() (claims token.Claims, err error) {
	if !token.ValidVideoID(opts.video) {
		return token.Claims{}, fmt.Errorf("--sub %q: %w", opts.video, errVideoID)
	}
	claims = token.Claims{VideoID: opts.video, Downloadable: opts.downloadable, Issuer: opts.issuer}
	if opts.audience != "" {
		claims.Audience = []string{opts.audience}
	}
	claims.Viewer, claims.ViewerClaim, claims.IssuedAt = opts.viewer, opts.viewerClaim, opts.now()
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
	if claims.ExpiresAt, err = parseTime(opts.expires, opts.now()); err != nil {
		return claims, fmt.Errorf("--exp %w", err)
	}
	if opts.startBy != "" {
		if claims.StartBy, err = parseTime(opts.startBy, opts.now()); err != nil {
			return claims, fmt.Errorf("--start-by %w", err)
		}
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
	if _, err := accessrules.CompileClaim(rules); err != nil {
		if !strings.ContainsAny(text, "@[{") {
			return nil, fmt.Errorf("--rules %q: want a JSON array; for a file write @%s", text, text)
		}
		return nil, fmt.Errorf("--rules: %w", err)
	}
	return rules, nil
}

func relativeTime(t, now time.Time) string {
	distance := t.Sub(now).Round(time.Second)
	if distance < 0 {
		return fmt.Sprintf("%s (%s ago)", t.UTC().Format(time.RFC3339), inWords(-distance))
	}
	return fmt.Sprintf("%s (in %s)", t.UTC().Format(time.RFC3339), inWords(distance))
}

// inWords returns a duration for people: in whole days from three days on.
func inWords(d time.Duration) string {
	if days := int(d.Hours() / 24); days >= 3 {
		return fmt.Sprintf("%d days", days)
	}
	return d.String()
}

// parseTime reads a duration from now, Unix seconds or RFC 3339.
func parseTime(text string, now time.Time) (time.Time, error) {
	if duration, err := caddy.ParseDuration(text); err == nil {
		return now.Add(duration), nil
	}
	if seconds, err := strconv.ParseInt(text, 10, 64); err == nil {
		const year2001, year5138 = 1_000_000_000, 100_000_000_000
		switch {
		case seconds < year2001:
			return time.Time{}, fmt.Errorf("%q: as Unix seconds this is before 2001; for a duration write %ss", text, text)
		case seconds > year5138:
			return time.Time{}, fmt.Errorf("%q: as Unix seconds this is after 5138; if it is in milliseconds, leave out the last three digits", text)
		}
		return time.Unix(seconds, 0), nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	return time.Time{}, fmt.Errorf("%q: give a duration like 1h, Unix seconds, or a time like 2030-01-31T12:00:00Z", text)
}
