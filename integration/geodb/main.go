// Command geodb writes the small address databases that the tests read. They
// are committed in testdata; to make them again, after a change here, run
//
//	cd integration && go run ./geodb ../testdata
//
// The files are the same, byte for byte, on every run:
//
//   - country.mmdb has the country of a few documentation and loopback
//     networks, in MaxMind's form (country.iso_code). One network, 192.0.2.0/24,
//     has only a registered country, so its country is unknown. In another,
//     198.18.0.0/15, the country is a text and not a map, so it cannot be read.
//   - flat.mmdb has the same countries in the flat form that other makers use
//     (country_code), without the networks whose country cannot be told.
//   - bare.mmdb is flat.mmdb for IPv4 alone, and its metadata has neither a
//     description nor a type nor languages. The public ip-location-db files
//     have no description either.
//   - asn.mmdb has the autonomous systems of the same networks, in MaxMind's form
//     (autonomous_system_number), and a record that cannot be read. It has no
//     country.
//   - flat_asn.mmdb has the same in the flat form (asn), as a number or as text
//     like AS64496, beside the country: one file with two facts.
//   - anonymous.mmdb has the anonymous networks among them, in the form of
//     MaxMind's Anonymous IP, and a record that cannot be read.
//   - anonymous_plus.mmdb is the same in the form of Anonymous Plus.
//   - updated_asn.mmdb and updated_anonymous.mmdb are the newer files that replace
//     asn.mmdb and anonymous.mmdb. Only 203.0.113.0/24 differs.
//   - updated.mmdb is country.mmdb with 203.0.113.0/24 moved to France, built a
//     day later: the newer file that replaces it.
package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"
)

// buildEpoch is the build time in the files, 2026-01-01T00:00:00Z. It is fixed,
// so that the files do not change from run to run.
const buildEpoch, day = 1767225600, 86400

// entry is a network and its value: a country code, or a record.
type entry[T any] struct {
	network string
	value   T
}

// countries are the networks whose country the tests know.
var countries = []entry[string]{
	{"203.0.113.0/24", "GB"},
	{"198.51.100.0/24", "DE"},
	{"2001:db8:1::/48", "GB"},
	{"2001:db8:2::/48", "US"},
	{"127.0.0.1/32", "US"},
	{"127.0.0.2/32", "GB"},
	{"127.0.0.3/32", "DE"},
	{"::1/128", "US"},
}

// database is one file to write.
type database struct {
	file        string
	kind        string
	description map[string]string
	ipVersion   int
	built       int64
	records     []entry[mmdbtype.Map]
}

var described = map[string]string{"en": "Test data"}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: geodb <folder>")
		os.Exit(2)
	}
	if err := writeAll(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "geodb:", err)
		os.Exit(1)
	}
}

// writeAll writes every database to folder.
func writeAll(folder string) error {
	for _, db := range databases() {
		if err := db.write(folder); err != nil {
			return fmt.Errorf("writing %s: %w", db.file, err)
		}
	}
	return nil
}

func databases() []database {
	return []database{
		{"country.mmdb", "GeoLite2-Country", described, 6, buildEpoch, countryRecords()},
		{"flat.mmdb", "country", described, 6, buildEpoch, records(flatRecord)},
		{"bare.mmdb", "", nil, 4, buildEpoch, ipv4Alone(records(flatRecord))},
		{"asn.mmdb", "GeoLite2-ASN", described, 6, buildEpoch, asnRecords()},
		{"flat_asn.mmdb", "generic", nil, 6, buildEpoch, records(flatASNRecord)},
		{"anonymous.mmdb", "GeoIP2-Anonymous-IP", described, 6, buildEpoch, anonymousRecords(anonymousRecord)},
		{"anonymous_plus.mmdb", "GeoIP-Anonymous-Plus", described, 6, buildEpoch, anonymousRecords(anonymousPlusRecord)},
		{"updated_asn.mmdb", "GeoLite2-ASN", described, 6, buildEpoch + day, append(asnRecords(), entry[mmdbtype.Map]{"203.0.113.0/24", asnRecord("FR")})},
		{
			"updated_anonymous.mmdb", "GeoIP2-Anonymous-IP", described, 6, buildEpoch + day,
			append(anonymousRecords(anonymousRecord), entry[mmdbtype.Map]{"203.0.113.0/24", anonymousRecord([]string{"is_tor_exit_node"})}),
		},
		{"updated.mmdb", "GeoLite2-Country", described, 6, buildEpoch + day, updatedRecords()},
	}
}

// records has one record for each of countries.
func records(record func(code string) mmdbtype.Map) []entry[mmdbtype.Map] {
	all := make([]entry[mmdbtype.Map], 0, len(countries))
	for _, c := range countries {
		all = append(all, entry[mmdbtype.Map]{c.network, record(c.value)})
	}
	return all
}

func countryRecords() []entry[mmdbtype.Map] {
	unknown := mmdbtype.Map{"registered_country": isoCode("FR")}
	unreadable := mmdbtype.Map{"country": mmdbtype.String("GB")}
	return append(records(countryRecord),
		entry[mmdbtype.Map]{"192.0.2.0/24", unknown}, entry[mmdbtype.Map]{"198.18.0.0/15", unreadable})
}

func ipv4Alone(all []entry[mmdbtype.Map]) []entry[mmdbtype.Map] {
	return slices.DeleteFunc(all, func(e entry[mmdbtype.Map]) bool { return strings.Contains(e.network, ":") })
}

// updatedRecords adds a record that replaces the first one for its network.
func updatedRecords() []entry[mmdbtype.Map] {
	return append(countryRecords(), entry[mmdbtype.Map]{"203.0.113.0/24", countryRecord("FR")})
}

func countryRecord(code string) mmdbtype.Map {
	return mmdbtype.Map{"country": isoCode(code)}
}

func isoCode(code string) mmdbtype.Map {
	return mmdbtype.Map{"iso_code": mmdbtype.String(code)}
}

func flatRecord(code string) mmdbtype.Map {
	return mmdbtype.Map{"country_code": mmdbtype.String(code)}
}

// systems are the autonomous systems of the countries. Their numbers are kept for
// documentation.
var systems = map[string]uint32{"GB": 64496, "DE": 64497, "US": 4200000000, "FR": 64499}

func asnRecords() []entry[mmdbtype.Map] {
	unreadable := mmdbtype.Map{"autonomous_system_number": mmdbtype.Map{}}
	return append(records(asnRecord), entry[mmdbtype.Map]{"198.18.0.0/15", unreadable})
}

func asnRecord(code string) mmdbtype.Map {
	return mmdbtype.Map{"autonomous_system_number": mmdbtype.Uint32(systems[code]), "autonomous_system_organization": mmdbtype.String("Test " + code)}
}

// flatASNRecord has the number of GB in text, that of DE in small letters, and those
// of others as numbers of two sizes.
func flatASNRecord(code string) mmdbtype.Map {
	record := flatRecord(code)
	switch number := systems[code]; code {
	case "GB":
		record["asn"] = mmdbtype.String(fmt.Sprint("AS", number))
	case "DE":
		record["asn"] = mmdbtype.String(fmt.Sprint("as", number))
	default:
		record["asn"] = mmdbtype.Uint64(number)
	}
	return record
}

// anonymous are the anonymous networks, with the members that are true. MaxMind
// leaves out those that are false.
var anonymous = []entry[[]string]{
	{"203.0.113.0/24", []string{"is_anonymous", "is_anonymous_vpn"}},
	{"198.51.100.0/24", []string{"is_anonymous", "is_tor_exit_node", "is_public_proxy"}},
	{"2001:db8:1::/48", []string{"is_anonymous", "is_residential_proxy"}},
	{"2001:db8:2::/48", []string{"is_hosting_provider"}},
	{"127.0.0.1/32", []string{"is_anonymous", "is_hosting_provider"}},
	{"127.0.0.2/32", []string{"is_anonymous", "is_anonymous_vpn"}},
	{"127.0.0.3/32", []string{"is_anonymous"}},
}

func anonymousRecords(record func(members []string) mmdbtype.Map) []entry[mmdbtype.Map] {
	unreadable := mmdbtype.Map{"is_anonymous": mmdbtype.String("yes")}
	all := make([]entry[mmdbtype.Map], 0, len(anonymous)+1)
	all = append(all, entry[mmdbtype.Map]{"198.18.0.0/15", unreadable})
	for _, network := range anonymous {
		all = append(all, entry[mmdbtype.Map]{network.network, record(network.value)})
	}
	return all
}

func anonymousRecord(members []string) mmdbtype.Map {
	record := make(mmdbtype.Map)
	for _, member := range members {
		record[mmdbtype.String(member)] = mmdbtype.Bool(true)
	}
	return record
}

func anonymousPlusRecord(members []string) mmdbtype.Map {
	record := anonymousRecord(members)
	record["anonymizer_confidence"], record["network_last_seen"] = mmdbtype.Uint16(99), mmdbtype.String("2026-01-01")
	record["provider_name"] = mmdbtype.String("Test")
	return record
}

// write makes the file in folder.
func (d database) write(folder string) error {
	tree, err := d.tree()
	if err != nil {
		return err
	}
	file, err := os.Create(filepath.Join(folder, d.file))
	if err != nil {
		return fmt.Errorf("creating the file: %w", err)
	}
	if _, err := tree.WriteTo(file); err != nil {
		_ = file.Close() // the write's error says more
		return fmt.Errorf("encoding the tree: %w", err)
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("closing the file: %w", err)
	}
	return nil
}

// tree holds the database's records. All its networks are reserved ones, which
// a database leaves out unless told not to.
func (d database) tree() (*mmdbwriter.Tree, error) {
	tree, err := mmdbwriter.New(mmdbwriter.Options{
		BuildEpoch:              d.built,
		DatabaseType:            d.kind,
		Description:             d.description,
		IncludeReservedNetworks: true,
		IPVersion:               d.ipVersion,
		RecordSize:              24,
	})
	if err != nil {
		return nil, fmt.Errorf("starting the tree: %w", err)
	}
	for _, r := range d.records {
		if err := insert(tree, r); err != nil {
			return nil, err
		}
	}
	return tree, nil
}

func insert(tree *mmdbwriter.Tree, r entry[mmdbtype.Map]) error {
	_, network, err := net.ParseCIDR(r.network)
	if err != nil {
		return fmt.Errorf("parsing network %q: %w", r.network, err)
	}
	if err := tree.Insert(network, r.value); err != nil {
		return fmt.Errorf("inserting network %s: %w", r.network, err)
	}
	return nil
}
