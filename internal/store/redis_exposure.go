package store

import (
	"net"

	"github.com/redis/rueidis"
)

// RedisExposure says why others on the network can read and change what goes to the
// Redis of an address, and names its host. The reason is "" if they cannot, and for an
// invalid address.
func RedisExposure(address string, isLoopback func(host string) bool) (host, why string) {
	options, err := rueidis.ParseURL(address)
	if err != nil || options.DialCtxFn != nil { // a Unix socket
		return "", ""
	}
	for _, server := range options.InitAddress {
		host, _, _ := net.SplitHostPort(server)
		switch {
		case isLoopback(host):
		case options.TLSConfig == nil:
			return server, "the connection is not encrypted"
		case options.TLSConfig.InsecureSkipVerify:
			return server, "skip_verify accepts the certificate of any server"
		}
	}
	return "", ""
}
