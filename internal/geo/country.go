package geo

import (
	"fmt"
	"net/netip"

	"github.com/maypok86/otter/v2"
	"github.com/oschwald/geoip2-golang/v2"
	"github.com/oschwald/maxminddb-golang/v2"
)

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

// countrySchemas read the country from the supported layouts of records, "" if a
// record has none. geoip2.Reader reads MaxMind's too, but accepts only the database
// types that it knows by name.
var countrySchemas = []func(maxminddb.Result) (string, error){maxMindCountry, flatCountry}

// maxMindCountry reads `country.iso_code`.
func maxMindCountry(record maxminddb.Result) (string, error) {
	var country geoip2.CountryRecord
	err := record.DecodePath(&country, "country")
	return country.ISOCode, err
}

// flatCountry reads `country_code`.
func flatCountry(record maxminddb.Result) (code string, err error) {
	err = record.DecodePath(&code, "country_code")
	return code, err
}

// maxCachedCountries bounds the cache of lookups to a few MiB.
const maxCachedCountries = 20_000

// countries looks countries up in one version of a database file. Its cache
// lives as long as that version is in force.
type countries struct {
	db     *maxminddb.Reader
	schema func(maxminddb.Result) (string, error)
	cache  *otter.Cache[netip.Addr, CountryCode]
}

// newCountries finds the schema by the first record that has a country. If no
// record had one, country rules would match no client, so such a database is an
// error.
func newCountries(db *maxminddb.Reader) (*countries, error) {
	for record := range db.Networks() {
		for _, schema := range countrySchemas {
			if code, err := schema(record); err == nil && code != "" {
				cache := otter.Must(&otter.Options[netip.Addr, CountryCode]{MaximumSize: maxCachedCountries})
				return &countries{db, schema, cache}, nil
			}
		}
	}
	return nil, fmt.Errorf("no record of this %q database has a country.iso_code or a country_code", db.Metadata.DatabaseType)
}

func (c *countries) lookup(addr netip.Addr) (CountryCode, error) {
	if country, ok := c.cache.GetIfPresent(addr); ok {
		return country, nil
	}
	if addr.Is6() && c.db.Metadata.IPVersion == 4 {
		return CountryCode{}, nil
	}
	code, err := c.schema(c.db.Lookup(addr))
	if err != nil {
		return CountryCode{}, err
	}
	country, _ := ParseCountryCode(code)
	c.cache.Set(addr, country)
	return country, nil
}
