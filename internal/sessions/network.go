package sessions

import (
	"encoding/binary"
	"net/netip"
)

// network is the network of a client in eight bytes: of IPv4 the first three octets, of
// IPv6 the first six. The zero value is an unknown one.
type network uint64

const (
	v4Bits, v6Bits = 24, 48

	v4Mark, v6Mark network = 1 << 56, 2 << 56
)

// networkOf returns the network of an address.
func networkOf(address netip.Addr) network {
	address = address.Unmap()
	switch {
	case address.Is4():
		octets := address.As4()
		return v4Mark | network(binary.BigEndian.Uint32(octets[:])>>(32-v4Bits))
	case address.Is6():
		octets := address.As16()
		return v6Mark | network(binary.BigEndian.Uint64(octets[:])>>(64-v6Bits))
	}
	return 0
}

// NetworkOf returns the network of an address as lists show it, the zero value for an unknown one.
func NetworkOf(address netip.Addr) netip.Prefix { return networkOf(address).prefix() }

// family returns 0 for IPv4 and 1 for IPv6.
func (n network) family() int { return int(n>>57) & 1 }

// prefix returns the network as a /24 or a /48, the zero value for an unknown one.
func (n network) prefix() netip.Prefix {
	switch n &^ (1<<56 - 1) {
	case v4Mark:
		var octets [4]byte
		binary.BigEndian.PutUint32(octets[:], uint32(n)<<(32-v4Bits))
		return netip.PrefixFrom(netip.AddrFrom4(octets), v4Bits)
	case v6Mark:
		var octets [16]byte
		binary.BigEndian.PutUint64(octets[:], uint64(n)<<(64-v6Bits))
		return netip.PrefixFrom(netip.AddrFrom16(octets), v6Bits)
	}
	return netip.Prefix{}
}

// countryCode is an ISO 3166-1 alpha-2 code; the zero value is an unknown country.
type countryCode [2]byte

func (c countryCode) String() string {
	if c == (countryCode{}) {
		return ""
	}
	return string(c[:])
}
