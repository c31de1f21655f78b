package command

import (
	"cmp"
	"fmt"
	"runtime/debug"

	"github.com/caddyserver/caddy/v2"
	"github.com/spf13/cobra"
)

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Prints the version of this module",
		Long:  "\nPrints the version of this module, and of Caddy.",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, full := caddy.Version()
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s (Caddy %s)\n", Version(), full)
			return err
		},
	}
}

// Version returns the version of this module in the binary: the required version,
// or the commit if the binary was built in the repository itself.
func Version() string {
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
