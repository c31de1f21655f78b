// Package command has the commands of `caddy signed-playback`, a file for each. It knows Caddy's
// command line and configs, and the gate only through a Module.
package command

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/signed-playback/caddy-signed-playback/internal/redact"
	"github.com/signed-playback/caddy-signed-playback/internal/replay"
	"github.com/signed-playback/caddy-signed-playback/internal/spelling"
)

// Module is what the commands need of the module itself.
type Module struct {
	replay.Module
	Leeway time.Duration // of gates without the option
}

// Register adds the commands to the command line of Caddy.
func Register(m Module) {
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
			cmd.AddCommand(keygenCommand(), signCommand(), inspectCommand(m), explainCommand(m), doctorCommand(m), healthCommand(), revokeCommand(), proxyCommand(m), versionCommand())
			for _, each := range append(cmd.Commands(), cmd) {
				prepare(each)
			}
		},
	})
}

// ErrRefused sets the exit status 1: the output says why a request or a token is refused, or what
// there is to do.
var ErrRefused = errors.New("the request is refused")

// terminal is the input, the outputs and the clock of a command.
type terminal struct {
	in       io.Reader
	out, err io.Writer
	now      time.Time
}

func terminalOf(cmd *cobra.Command) terminal {
	return terminal{cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr(), time.Now()}
}

// warn prints what does not stop a command but may surprise the user.
func (t terminal) warn(format string, args ...any) {
	fmt.Fprintf(t.err, "warning: "+format+"\n", args...)
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
	if meant := spelling.Closest(word, names); meant != "" {
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
	if meant := spelling.Closest(word, names); meant != "" {
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
	if errors.Is(err, ErrRefused) { // which is explained already
		return err
	}
	cmd.PrintErrln("Error:", redact.Tokens(err.Error()))
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
