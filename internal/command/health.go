package command

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/spf13/cobra"

	"github.com/signed-playback/caddy-signed-playback/internal/siteconfig"
)

func healthCommand() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use:   "health --config <file>",
		Short: "Checks whether the server of a config runs",
		Long: `
Connects to each port of the config, on this machine. The exit status is 0 if all
accept connections, and 2 if one does not. Containers use it as their health check.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return health(cmd.Context(), config) },
	}
	cmd.Flags().StringVarP(&config, "config", "c", "Caddyfile", "the config `file`: a Caddyfile, or JSON if its name ends in .json")
	return cmd
}

// health connects to all TCP and Unix sockets of the servers of a config.
func health(ctx context.Context, file string) error {
	config, err := siteconfig.Adapt(file)
	if err != nil {
		return err
	}
	_, servers, err := siteconfig.HTTPServers(config)
	if err != nil {
		return err
	}
	for _, server := range servers {
		listen, _ := server["listen"].([]any)
		for _, listener := range listen {
			text, _ := listener.(string)
			address, err := caddy.ParseNetworkAddress(text)
			if err != nil {
				return err
			}
			if host, err := netip.ParseAddr(address.Host); address.Host == "" || err == nil && host.IsUnspecified() {
				address.Host = "127.0.0.1" // a container may not resolve localhost
			}
			if err := connects(ctx, address.Network, address.JoinHostPort(0), false, originTimeout); err != nil {
				return fmt.Errorf("the server does not listen: %w", err)
			}
		}
	}
	return nil
}

// connects reports why a connection to an address fails.
func connects(ctx context.Context, network, address string, secure bool, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	dial := new(net.Dialer).DialContext
	if secure {
		dial = new(tls.Dialer).DialContext
	}
	conn, err := dial(ctx, network, address)
	if err != nil {
		return err
	}
	return conn.Close()
}
