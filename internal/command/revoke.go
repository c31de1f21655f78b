package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/signed-playback/caddy-signed-playback/internal/controlapi"
	"github.com/signed-playback/caddy-signed-playback/internal/state"
)

// apiTokenVariable is the environment variable with the secret of the control API.
const apiTokenVariable = "SIGNED_PLAYBACK_API_TOKEN"

func revokeCommand() *cobra.Command {
	opts := revokeOptions{values: make(map[state.Selector]*string)}
	cmd := &cobra.Command{
		Use:   "revoke --api <url> --token <token>|--jti <id>|--uid <viewer>|--video <video>|--session <id> [--issued-before <time>] [--expires <time>] [--reason <text>] [--secret <file>] [--account <id>]",
		Short: "Revokes a token, a viewer, a video or a session",
		Long: `
Asks the control API of a running server to revoke a token, the tokens of a viewer
or a video, or a playback session, and prints the id of the revocation. A token may
be a playback URL. Pass it on standard input (-), so that no list of processes
shows it:

	$ caddy signed-playback revoke --api https://api.example.com --token - < url
	$ caddy signed-playback revoke --api https://api.example.com --uid ann --expires 24h

The secret of the API is in the environment variable ` + apiTokenVariable + `,
or in the file of --secret. A time is a duration from now (1h, -5m), Unix seconds,
or RFC 3339.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts.terminal = terminalOf(cmd)
			return opts.revoke(cmd.Context())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&opts.api, "api", "", "the `address` of the control API")
	for selector, meaning := range map[state.Selector]string{
		state.SelectToken:   "the `token`, a playback URL, or - for standard input",
		state.SelectJTI:     "the tokens with this `jti`",
		state.SelectViewer:  "the tokens of this `viewer`",
		state.SelectVideo:   "the tokens of this `video`",
		state.SelectSession: "the session with this `id`, as the API lists it",
	} {
		opts.values[selector] = flags.String(string(selector), "", meaning)
	}
	flags.StringVar(&opts.issuedBefore, "issued-before", "", "revoke only tokens that were issued until this `time` (default: now, for --uid and --video)")
	flags.StringVar(&opts.expires, "expires", "", "the `time` when the revocation ends (default: the exp of --token, or max_token_lifetime from now; required if there is neither)")
	flags.StringVar(&opts.reason, "reason", "", "a `note` for operators")
	flags.StringVar(&opts.secret, "secret", "", "the `file` with the secret of the API, or - for standard input (default: "+apiTokenVariable+")")
	flags.StringVar(&opts.account, "account", "any", "the account `id`, if the API has the option account")
	return cmd
}

type revokeOptions struct {
	terminal
	api                   string
	values                map[state.Selector]*string
	issuedBefore, expires string
	reason                string
	secret, account       string
}

// revoke makes the call and prints the id of the revocation.
func (opts revokeOptions) revoke(ctx context.Context) error {
	address, err := opts.address()
	if err != nil {
		return err
	}
	body, err := opts.body()
	if err != nil {
		return err
	}
	secret, err := opts.readSecret()
	if err != nil {
		return err
	}
	if ip, _ := netip.ParseAddr(address.Hostname()); address.Scheme == "http" && address.Hostname() != "localhost" && !ip.IsLoopback() {
		opts.warn("--api %q: others on the network can read the secret, because the connection is not encrypted", opts.api)
	}
	id, err := callRevocations(ctx, address.String(), secret, body)
	if err != nil {
		return fmt.Errorf("--api %q: %w", opts.api, err)
	}
	_, err = fmt.Fprintln(opts.out, id)
	return err
}

func (opts revokeOptions) address() (*url.URL, error) {
	base := parseBaseURL(opts.api)
	switch {
	case opts.api == "":
		return nil, errors.New("--api is missing: give the address of the control API, like https://api.example.com")
	case base == nil:
		return nil, fmt.Errorf("--api %q: give an address like https://api.example.com", opts.api)
	}
	if err := controlapi.CheckAccount(opts.account); err != nil {
		return nil, fmt.Errorf("--%w", err)
	}
	base.Path, _, _ = strings.Cut(base.Path, "/client/v4")
	return base.JoinPath("client/v4/accounts", opts.account, "stream/revocations"), nil
}

// body returns the body of the call. The API checks what it says.
func (opts revokeOptions) body() ([]byte, error) {
	members := make(map[string]any)
	for _, selector := range state.Selectors {
		if value := *opts.values[selector]; value != "" {
			members[string(selector)] = value
		}
	}
	if len(members) != 1 {
		return nil, fmt.Errorf("%d of --token, --jti, --uid, --video and --session are given: give exactly one", len(members))
	}
	if text := *opts.values[state.SelectToken]; text != "" {
		if text == "-" && opts.secret == "-" {
			return nil, errors.New("--token and --secret cannot both come from standard input")
		}
		compact, err := findToken(text, "", opts.in)
		if err != nil {
			return nil, fmt.Errorf("--token: %w", err)
		}
		members[string(state.SelectToken)] = compact
	}
	for flag, date := range map[string][2]string{"issued-before": {opts.issuedBefore, "issuedBefore"}, "expires": {opts.expires, "expires"}} {
		if date[0] == "" {
			continue
		}
		when, err := parseTime(date[0], opts.now)
		if err != nil {
			return nil, fmt.Errorf("--%s %w", flag, err)
		}
		members[date[1]] = when.Unix()
	}
	if opts.reason != "" {
		members["reason"] = opts.reason
	}
	return json.Marshal(members)
}

func (opts revokeOptions) readSecret() (string, error) {
	data, err := []byte(os.Getenv(apiTokenVariable)), error(nil)
	switch opts.secret {
	case "":
	case "-":
		data, err = io.ReadAll(opts.in)
	default:
		data, err = os.ReadFile(opts.secret)
	}
	secret := strings.TrimSpace(string(data))
	if err == nil && secret == "" {
		err = fmt.Errorf("it is empty; without the flag, %s has the secret, which is a bearer_token of the API", apiTokenVariable)
	}
	if err != nil {
		return "", fmt.Errorf("--secret %q: %w", opts.secret, err)
	}
	return secret, nil
}

const revokeCallTimeout = 30 * time.Second

// callRevocations makes the call of the API and returns the id of the revocation. It
// follows no redirect, which would take the secret elsewhere.
func callRevocations(ctx context.Context, address, secret string, body []byte) (id string, err error) {
	ctx, cancel := context.WithTimeout(ctx, revokeCallTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	request.Header.Set("Authorization", "Bearer "+secret)
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := client.Do(request)
	if err != nil {
		if failed, ok := errors.AsType[*net.OpError](err); ok {
			err = failed
		}
		return "", fmt.Errorf("no answer: %w", err)
	}
	defer response.Body.Close()
	var answer struct {
		Result  struct{ ID string }
		Success bool
		Errors  []struct{ Message string }
	}
	const longest = 64 << 10
	decoded := json.NewDecoder(io.LimitReader(response.Body, longest)).Decode(&answer)
	switch {
	case decoded == nil && answer.Success && answer.Result.ID != "":
		return answer.Result.ID, nil
	case response.StatusCode == http.StatusUnauthorized:
		return "", fmt.Errorf("401: the API does not know the secret; %s or --secret must have one of its bearer_token", apiTokenVariable)
	case decoded == nil && len(answer.Errors) > 0:
		return "", fmt.Errorf("%d: %s", response.StatusCode, answer.Errors[0].Message)
	}
	return "", fmt.Errorf("%s is not an answer of the control API; give the address of the site that has signed_playback_api", response.Status)
}
