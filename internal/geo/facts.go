package geo

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/oschwald/geoip2-golang/v2"
	"github.com/oschwald/maxminddb-golang/v2"
)

// Fact is one thing that a database tells about an address.
type Fact uint8

// The facts, each of which has a database of its own.
const (
	Country   Fact = iota // where the address is
	ASN                   // the autonomous system that announces it
	Anonymous             // what hides the viewer who uses it

	FactCount // is no fact
)

// Option returns the option that names the database of a fact.
func (f Fact) Option() string { return databases[f].option }

// Facts are the entries of the databases for one address. A zero fact is unknown.
type Facts struct {
	Country    CountryCode
	ASN        uint32
	Anonymous  AnonymousKinds
	unreadable uint8 // a bit for each fact whose record cannot be decoded
}

// Readable reports whether the record of a fact could be decoded. If not, the fact
// may be anything.
func (f Facts) Readable(fact Fact) bool { return f.unreadable&(1<<fact) == 0 }

// CountryCode is an ISO 3166-1 alpha-2 code in capitals. The zero value is an
// unknown country.
type CountryCode [2]byte

// String returns the two letters, or "" for an unknown country.
func (c CountryCode) String() string {
	if c == (CountryCode{}) {
		return ""
	}
	return string(c[:])
}

// ParseCountryCode reads two ASCII letters of either case. It does not check
// that a country has this code.
func ParseCountryCode(s string) (code CountryCode, ok bool) {
	if len(s) != len(code) {
		return CountryCode{}, false
	}
	for i := range code {
		c := s[i] &^ 0x20
		if c < 'A' || c > 'Z' {
			return CountryCode{}, false
		}
		code[i] = c
	}
	return code, true
}

// AnonymousKinds is a set of kinds of anonymous networks.
type AnonymousKinds uint8

// anonymousNames are the kinds that have a name, in the order of their bits.
var anonymousNames = [...]string{"vpn", "hosting", "public_proxy", "residential_proxy", "tor"}

// otherAnonymous marks an anonymous network whose kind the database does not tell.
const otherAnonymous = AnonymousKinds(1 << len(anonymousNames))

// AnyAnonymous has all kinds, and networks of no known kind.
const AnyAnonymous = otherAnonymous<<1 - 1

// ParseAnonymousKind reads the name of a kind: vpn, hosting, public_proxy,
// residential_proxy or tor.
func ParseAnonymousKind(name string) (AnonymousKinds, error) {
	for i, known := range anonymousNames {
		if name == known {
			return 1 << i, nil
		}
	}
	return 0, fmt.Errorf("%q: want some of %s", name, strings.Join(anonymousNames[:], ", "))
}

// String lists the names of the kinds, "anonymous" for a network of no known kind, or
// "" for an empty set.
func (k AnonymousKinds) String() string {
	var names []string
	for i, name := range anonymousNames {
		if k&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	if names == nil && k != 0 {
		return "anonymous"
	}
	return strings.Join(names, " ")
}

// schema reads a fact from a record in one of the supported layouts. It leaves the
// fact alone if the record does not tell.
type schema func(maxminddb.Result, *Facts) error

// databases are the option that names the database of a fact, and the schemas of its
// records, with their names for errors. geoip2.Reader reads MaxMind's too, but accepts
// only the database types that it knows by name.
var databases = [FactCount]struct {
	option  string
	members string
	schemas []schema
}{
	Country:   {"geoip_database", "a country.iso_code or a country_code", []schema{countryAt("country", "iso_code"), countryAt("country_code")}},
	ASN:       {"asn_database", "an autonomous_system_number or an asn", []schema{asnAt("autonomous_system_number"), asnAt("asn")}},
	Anonymous: {"anonymous_database", "an is_anonymous or is_anonymous_vpn", []schema{maxMindAnonymous}},
}

// countryAt reads the country code at a path.
func countryAt(path ...any) schema {
	return func(record maxminddb.Result, facts *Facts) error {
		var code string
		err := record.DecodePath(&code, path...)
		facts.Country, _ = ParseCountryCode(code)
		return err
	}
}

// asnAt reads the member of that name, which is a number, or text like AS64500.
func asnAt(name string) schema {
	return func(record maxminddb.Result, facts *Facts) error {
		err := record.DecodePath(&facts.ASN, name)
		if err == nil {
			return nil
		}
		var text string
		if record.DecodePath(&text, name) != nil {
			return err
		}
		digits, _ := strings.CutPrefix(strings.ToUpper(text), "AS")
		number, _ := strconv.ParseUint(digits, 10, 32)
		facts.ASN = uint32(number)
		return nil
	}
}

// maxMindAnonymous reads the members that Anonymous IP and Anonymous Plus have in
// common.
func maxMindAnonymous(record maxminddb.Result, facts *Facts) error {
	var flags geoip2.AnonymousIP
	err := record.Decode(&flags)
	for i, set := range []bool{
		flags.IsAnonymousVPN, flags.IsHostingProvider, flags.IsPublicProxy, flags.IsResidentialProxy, flags.IsTorExitNode, flags.IsAnonymous,
	} {
		if set {
			facts.Anonymous |= 1 << i
		}
	}
	return err
}

// reader reads a fact from one version of a database file.
type reader struct {
	db     *maxminddb.Reader
	schema schema
}

// newReader finds the schema by the first record that tells the fact. If no record
// did, rules would match no client, so such a database is an error.
func newReader(db *maxminddb.Reader, fact Fact) (*reader, error) {
	for record := range db.Networks() {
		for _, read := range databases[fact].schemas {
			var found Facts
			if err := read(record, &found); err == nil && found != (Facts{}) {
				return &reader{db, read}, nil
			}
		}
	}
	return nil, fmt.Errorf("no record of this %q database has %s", db.Metadata.DatabaseType, databases[fact].members)
}

func (r *reader) read(addr netip.Addr, facts *Facts) error {
	if addr.Is6() && r.db.Metadata.IPVersion == 4 {
		return nil
	}
	return r.schema(r.db.Lookup(addr), facts)
}
