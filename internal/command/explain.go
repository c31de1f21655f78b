package command

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"github.com/signed-playback/caddy-signed-playback/internal/replay"
)

func explainCommand(m Module) *cobra.Command {
	var opts explainOptions
	cmd := &cobra.Command{
		Use:   "explain <url> --config <file> [--ip <address>] [--origin <origin>] [--referer <url>] [--at <time>]",
		Short: "Shows why a request is allowed or refused",
		Long: `
Replays a request against a config and prints each check of the gate with its
outcome and the values that decided it. It starts no server, writes nothing and
sends nothing to the origin. The ports, matchers, rewrites and trusted proxies of
the config apply, and the gate decides with the code that serves viewers. Keys, key
sets, the geo database and the store are read as the server reads them.

It also shows the checks after the one that refuses, as far as possible.
The exit status is 0 for a request that is allowed (also in report-only mode), 1
for one that is refused, and 2 for an error.

	$ caddy signed-playback explain --config /etc/caddy/Caddyfile \
		'https://media.example.com/eyJhbGci…/manifest/video.m3u8' \
		--ip 203.0.113.7 --origin https://www.example.com
	…
	origins   pass    Origin "https://www.example.com"
	rules     refuse  rule 1 of 2: ip.geoip.country [GB] allow: client 203.0.113.7 is in DE, no match
	                  rule 2 of 2: any block: match: block
	…
	refused with 403 rule_blocked, for 203.0.113.7 at 2030-01-31T12:00:00Z
	$ pbpaste | caddy signed-playback explain - --ip 203.0.113.7

Times are RFC 3339, Unix seconds, or durations from now (-5m, 1h).`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			opts.terminal = terminalOf(cmd)
			if opts.request.URL, err = oneURL(cmd, opts.request.URL, args); err != nil {
				return err
			}
			return opts.explain(m)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&opts.config, "config", "c", "Caddyfile", "the config `file`: a Caddyfile, or JSON if its name ends in .json")
	flags.StringVar(&opts.request.URL, "url", "", "the `URL` that the viewer requested, or - for standard input; you may leave out --url")
	flags.StringVar(&opts.request.IP, "ip", "", "the viewer's `address` (default: 127.0.0.1)")
	flags.StringVar(&opts.request.Origin, "origin", "", "the `Origin` header (default: none)")
	flags.StringVar(&opts.request.Referer, "referer", "", "the `Referer` header (default: none)")
	flags.StringArrayVar(&opts.request.Headers, "header", nil, "another header, as `'Name: value'`; may be repeated")
	flags.StringVar(&opts.request.Method, "method", http.MethodGet, "the request's `method`")
	flags.StringVar(&opts.at, "at", "", "the `time` of the request (default: now)")
	flags.BoolVar(&opts.json, "json", false, "print JSON")
	return cmd
}

type explainOptions struct {
	terminal
	config  string
	request replay.Request
	at      string
	json    bool
}

// explain prints why the gate of a config allows or refuses a request.
func (opts explainOptions) explain(m Module) (err error) {
	request, err := opts.readRequest(opts.request)
	if err != nil {
		return err
	}
	at := opts.now
	if opts.at != "" {
		if at, err = parseTime(opts.at, opts.now); err != nil {
			return fmt.Errorf("--at %w", err)
		}
	}
	config, err := replay.Load(opts.config, m.Module)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, config.Gateway.Cleanup()) }()
	e, err := config.Explain(request, at)
	if err != nil {
		return err
	}
	if opts.json {
		err = writeJSON(opts.out, e)
	} else {
		err = e.Print(opts.out)
	}
	if err == nil && !e.Allowed {
		err = ErrRefused
	}
	return err
}

// readRequest returns the request of a viewer whose URL may be on standard input (-).
func (t terminal) readRequest(asked replay.Request) (*http.Request, error) {
	if asked.URL == "-" {
		text, err := io.ReadAll(io.LimitReader(t.in, 1<<20))
		if err != nil {
			return nil, fmt.Errorf("--url: reading standard input: %w", err)
		}
		asked.URL = strings.TrimSpace(string(text))
	}
	r, err := asked.HTTP()
	if err != nil {
		return nil, fmt.Errorf("--%w", err)
	}
	return r, nil
}
