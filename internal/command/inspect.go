package command

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/signed-playback/caddy-signed-playback/internal/accessrules"
	"github.com/signed-playback/caddy-signed-playback/internal/redact"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
	"github.com/signed-playback/caddy-signed-playback/token"
)

func inspectCommand(m Module) *cobra.Command {
	var opts inspectOptions
	cmd := &cobra.Command{
		Use:   "inspect <token or URL> [--key <file>] [--json]",
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

The exit status is 0 if the token is well-formed and, with --key, is valid now,
1 for another token, and 2 for an error.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			opts.terminal = terminalOf(cmd)
			if opts.token, err = oneURL(cmd, opts.token, args); err != nil {
				return err
			}
			return opts.inspect(m)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&opts.token, "url", "", "the token or the `URL`, or - for standard input; you may leave out --url")
	flags.StringVar(&opts.key, "key", "", "the `file` with the verification key, or - for standard input")
	flags.BoolVar(&opts.json, "json", false, "print JSON")
	return cmd
}

type inspectOptions struct {
	terminal
	token string
	key   string
	json  bool
}

// inspection is the output of inspect, as far as the token can be read.
type inspection struct {
	TokenID   string          `json:"token_id"`
	Header    json.RawMessage `json:"header,omitempty"`
	Payload   json.RawMessage `json:"payload,omitempty"`
	Video     string          `json:"video,omitempty"`
	KeyID     string          `json:"key_id,omitempty"`
	Expires   *time.Time      `json:"expires,omitempty"`
	NotBefore *time.Time      `json:"not_before,omitempty"`
	Audience  []string        `json:"audience,omitempty"`
	Issuer    string          `json:"issuer,omitempty"`
	ID        string          `json:"jti,omitempty"`
	Issued    *time.Time      `json:"issued,omitempty"`
	Viewer    string          `json:"viewer,omitempty"` // the claim uid
	Limit     int             `json:"session_limit,omitempty"`
	StartBy   *time.Time      `json:"start_by,omitempty"`
	Rules     *int            `json:"rules,omitempty"`
	Verified  bool            `json:"verified"`         // with --key, and the dates are valid too
	Reason    refusal.Reason  `json:"reason,omitempty"` // why the gate would refuse the token
	Warnings  []string        `json:"warnings,omitempty"`
}

// inspect prints the content of a token, as far as it can be read, and why the gate would
// refuse it.
func (opts inspectOptions) inspect(m Module) error {
	compact, err := findToken(opts.token, opts.key, opts.in)
	if err != nil {
		return err
	}
	var keys *token.KeySet
	if opts.key != "" {
		if keys, err = readKeySet(opts.key, opts.in); err != nil {
			return err
		}
	}
	found := inspection{TokenID: redact.TokenID(compact)}
	refused := found.read(compact, keys, m.Leeway, opts.now)
	if why, ok := errors.AsType[*refusal.Error](refused); ok {
		found.Reason = why.Reason
	}
	if opts.json {
		err = writeJSON(opts.out, found)
	} else {
		found.print(opts.out, keys != nil, opts.now)
	}
	if err == nil && refused != nil {
		fmt.Fprintln(opts.err, "Error:", redact.Tokens(refused.Error()))
		err = ErrRefused
	}
	return err
}

// read copies the claims of a token, and verifies the token if there are keys. The error is the
// gate's reason to refuse it, nil if the gate accepts it.
func (i *inspection) read(compact string, keys *token.KeySet, leeway time.Duration, now time.Time) error {
	parsed, err := token.Parse(compact)
	if err != nil {
		return refusal.OfToken(err)
	}
	header, payload := parsed.Documents()
	i.Header, i.Payload = json.RawMessage(header), json.RawMessage(payload)
	claims := parsed.Unverified()
	i.Video, i.KeyID, i.Audience, i.Issuer = claims.VideoID, claims.KeyID, claims.Audience, claims.Issuer
	i.ID, i.Viewer, i.Limit = claims.ID, claims.Viewer, claims.SessionLimit
	i.Expires, i.NotBefore = shownDate(claims.ExpiresAt), shownDate(claims.NotBefore)
	i.Issued, i.StartBy = shownDate(claims.IssuedAt), shownDate(claims.StartBy)
	rules, err := accessrules.CompileClaim(claims.AccessRules)
	if err != nil {
		return refusal.RulesInvalid.Because(err)
	}
	i.Rules, i.Warnings = new(len(rules)), rules.Warnings(anyDatabase)
	if keys == nil {
		return nil
	}
	_, err = token.Verify(compact, keys, now, token.Policy{Leeway: leeway})
	if errors.Is(err, token.ErrKeyUnknown) {
		err = fmt.Errorf("%w: the token's key id is %q, and --key has %q", err, claims.KeyID, keys.IDs())
	}
	if err != nil {
		return refusal.OfToken(err)
	}
	i.Verified = true
	return nil
}

// shownDate returns a date in UTC, nil for none.
func shownDate(date time.Time) *time.Time {
	if date.IsZero() {
		return nil
	}
	return new(date.UTC())
}

func (i *inspection) print(out io.Writer, hasKey bool, now time.Time) {
	fmt.Fprintf(out, "token id:   %s\n", i.TokenID)
	if i.Expires == nil {
		return
	}
	fmt.Fprintf(out, "header:     %s\n", i.Header)
	fmt.Fprintf(out, "payload:    %s\n", i.Payload)
	fmt.Fprintf(out, "video:      %s\n", i.Video)
	fmt.Fprintf(out, "key id:     %s\n", i.KeyID)
	i.printClaims(out, now)
	if i.Rules == nil {
		return
	}
	fmt.Fprintf(out, "rules:      %d\n", *i.Rules)
	for _, warning := range i.Warnings {
		fmt.Fprintf(out, "warning:    %s\n", warning)
	}
	switch {
	case !hasKey:
		fmt.Fprintln(out, "signature:  not checked; give --key")
	case i.Verified:
		fmt.Fprintln(out, "signature:  valid, and so are the dates")
	}
}

func (i *inspection) printClaims(out io.Writer, now time.Time) {
	for _, date := range []struct {
		name string
		date *time.Time
	}{{"expires:", i.Expires}, {"not before:", i.NotBefore}, {"issued:", i.Issued}, {"start by:", i.StartBy}} {
		if date.date != nil {
			fmt.Fprintf(out, "%-12s%s\n", date.name, relativeTime(*date.date, now))
		}
	}
	if i.Audience != nil {
		fmt.Fprintf(out, "audience:   %q\n", i.Audience)
	}
	for _, text := range [][2]string{{"issuer:", i.Issuer}, {"jti:", i.ID}, {"viewer:", i.Viewer}} {
		if text[1] != "" {
			fmt.Fprintf(out, "%-12s%q\n", text[0], text[1])
		}
	}
	if i.Limit != 0 {
		fmt.Fprintf(out, "sessions:   at most %d at a time\n", i.Limit)
	}
}

func readKeySet(path string, in io.Reader) (*token.KeySet, error) {
	data, id, err := readKeyFile(path, in)
	if err != nil {
		return nil, err
	}
	keys, err := token.ParsePublicKeys(data, id)
	if err != nil {
		return nil, fmt.Errorf("--key %q: %w", path, err)
	}
	return token.NewKeySet(keys...)
}

// findToken returns the token on the command line or on standard input: the
// whole text, or the segment of a URL's path that has two dots. key is the value of --key.
func findToken(text, key string, in io.Reader) (string, error) {
	if text == "-" {
		if key == "-" {
			return "", errors.New("the token and --key cannot both come from standard input")
		}
		data, err := io.ReadAll(io.LimitReader(in, 4*token.MaxLength))
		if err != nil {
			return "", err
		}
		text = string(data)
	}
	text = strings.TrimSpace(text)
	if !strings.Contains(text, "/") {
		if strings.Count(text, ".") != 2 {
			return "", fmt.Errorf("%q is neither a token, which has three parts with dots between them, nor a URL with one", redact.Tokens(text))
		}
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
