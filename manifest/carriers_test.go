package manifest_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/signed-playback/caddy-signed-playback/manifest"
)

// carriers are all places of URIs in MPDs, with their clauses: of ISO/IEC 23009-1 (sixth
// edition), of ETSI TS 103 285 (DVB), TS 103 998 (content steering), and of DASH-IF IOP. In base, %s is resolved
// against the BaseURLs, in document against the address of the MPD. In left, no player resolves it
// against either, or it is no address of this origin, so it stays.
// The clause is what the documentation has in the line of this place.
var carriers = []struct{ clause, base, document, left string }{
	{clause: "5.6; BaseURL", base: `<Period><BaseURL>%s</BaseURL></Period>`},
	{clause: "5.3.1.2; Location", document: `<Location>%s</Location>`},
	{clause: "5.15; PatchLocation", document: `<PatchLocation ttl="9">%s</PatchLocation>`},
	{clause: "5.3.2.6; ImportedMPD", document: `<Period><ImportedMPD earliestResolutionTimeOffset="5">%s</ImportedMPD></Period>`},
	{clause: "5.3.9.4; SegmentTemplate@media", base: `<Period><SegmentTemplate media="%s"/></Period>`},
	{clause: "5.3.9.4; SegmentTemplate@index", base: `<Period><SegmentTemplate index="%s"/></Period>`},
	{clause: "5.3.9.4; SegmentTemplate@initialization", base: `<Period><SegmentTemplate initialization="%s"/></Period>`},
	{clause: "5.3.9.4; SegmentTemplate@bitstreamSwitching", base: `<Period><SegmentTemplate bitstreamSwitching="%s"/></Period>`},
	{clause: "5.3.9.3; SegmentURL@media", base: `<Period><SegmentList><SegmentURL media="%s"/></SegmentList></Period>`},
	{clause: "5.3.9.3; SegmentURL@index", base: `<Period><SegmentList><SegmentURL index="%s"/></SegmentList></Period>`},
	{clause: "5.3.9.2; Initialization@sourceURL", base: `<Period><SegmentBase><Initialization sourceURL="%s"/></SegmentBase></Period>`},
	{clause: "5.3.9.2; RepresentationIndex@sourceURL", base: `<Period><SegmentBase><RepresentationIndex sourceURL="%s"/></SegmentBase></Period>`},
	{clause: "5.3.9.2; BitstreamSwitching@sourceURL", base: `<Period><SegmentList><BitstreamSwitching sourceURL="%s"/></SegmentList></Period>`},
	{clause: "5.3.12; InitializationSet@initialization", base: `<InitializationSet id="1" initialization="%s"/>`},
	{clause: "5.3.3; AdaptationSet@initializationPrincipal", base: `<Period><AdaptationSet initializationPrincipal="%s"/></Period>`},
	{clause: "5.3.11; Preselection@initializationPrincipal", base: `<Period><Preselection initializationPrincipal="%s"/></Period>`},
	{clause: "5.5; Period@xlink:href", base: `<Period xlink:href="%s"/>`},
	{clause: "5.5; AdaptationSet@xlink:href", base: `<Period><AdaptationSet xlink:href="%s"/></Period>`},
	{clause: "5.5; SegmentList@xlink:href", base: `<Period><SegmentList xlink:href="%s"/></Period>`},
	{clause: "5.5; EventStream@xlink:href", base: `<Period><EventStream xlink:href="%s"/></Period>`},
	{clause: "5.5; InitializationSet@xlink:href", base: `<InitializationSet xlink:href="%s"/>`},
	{clause: "5.7.2; ProgramInformation@moreInformationURL", base: `<ProgramInformation moreInformationURL="%s"/>`},
	{clause: "5.10.2; SelectionInfo@contactURL", base: `<Period><EventStream><Event><SelectionInfo contactURL="%s"/></Event></EventStream></Period>`},
	{clause: "5.8.4.11; UTCTiming@value", base: `<UTCTiming schemeIdUri="urn:mpeg:dash:utc:http-iso:2014" value="%s"/>`},
	{clause: "5.12.2; ProducerReferenceTime", base: `<Period><ProducerReferenceTime><UTCTiming schemeIdUri="urn:mpeg:dash:utc:http-head:2014" value="%s"/></ProducerReferenceTime></Period>`},
	{clause: "5.11.2; MPD chaining", base: `<SupplementalProperty schemeIdUri="urn:mpeg:dash:chaining:2016" value="%s"/>`},
	{clause: "5.11.3; MPD fallback", base: `<SupplementalProperty value="%s" schemeIdUri="urn:mpeg:dash:fallback:2016"/>`},
	{clause: "5.16.3; InsertPresentation@uri", base: `<Period><EventStream schemeIdUri="urn:mpeg:dash:event:alternativeMPD:insert:2025"><Event><InsertPresentation uri="%s"/></Event></EventStream></Period>`},
	{clause: "5.16.4; ReplacePresentation@uri", base: `<Period><EventStream schemeIdUri="urn:mpeg:dash:event:alternativeMPD:replace:2025"><Event><ReplacePresentation uri="%s" clip="true"/></Event></EventStream></Period>`},
	{clause: "5.16.4; ReplacePresentation@url", base: `<Period><EventStream><Event><ReplacePresentation url="%s"/></Event></EventStream></Period>`},
	{clause: "AlternativeMPD@uri", base: `<Period><EventStream><Event><AlternativeMPD uri="%s"/></Event></EventStream></Period>`},
	{clause: "OverlayEvent@uri", base: `<Period><EventStream><Event><OverlayEvent uri="%s" mimeType="image/png"/></Event></EventStream></Period>`},
	{clause: "OverlayEvent/Background@uri", base: `<Period><EventStream><Event><OverlayEvent><Background uri="%s"/></OverlayEvent></Event></EventStream></Period>`},
	{clause: "I.2; UrlQueryInfo@xlink:href", base: `<EssentialProperty schemeIdUri="urn:mpeg:dash:urlparam:2014"><up:UrlQueryInfo queryTemplate="$a/b$" xlink:href="%s"/></EssentialProperty>`},
	{clause: "I.3; ExtUrlQueryInfo@xlink:href", base: `<SupplementalProperty schemeIdUri="urn:mpeg:dash:urlparam:2016"><up:ExtUrlQueryInfo xlink:href="%s"/></SupplementalProperty>`},
	{clause: "TS 103 998; ContentSteering", base: `<ContentSteering defaultServiceLocation="a.b">%s</ContentSteering>`},
	{clause: "TS 103 998; ContentSteering@proxyServerURL", base: `<ContentSteering proxyServerURL="%s"/>`},
	{clause: "TS 103 285 7.2.1; @dvb:url", base: `<Period><AdaptationSet><SupplementalProperty schemeIdUri="urn:dvb:dash:fontdownload:2014" value="1" dvb:url="%s" dvb:fontFamily="a.b/c" dvb:mimeType="application/font-woff"/></AdaptationSet></Period>`},
	{clause: "TS 103 285 7.2.1; EssentialProperty` (fonts)", base: `<Period><AdaptationSet><Representation><EssentialProperty x:url="%s"/></Representation></AdaptationSet></Period>`},
	{clause: "TS 103 285 10.12.3; @dvb:reportingUrl", base: `<Metrics metrics="DVBErrors"><Reporting dvb:reportingUrl="%s"/></Metrics>`},
	{clause: "ISO/IEC 23009-4; CryptoPeriod@keyUriTemplate", base: `<Period><AdaptationSet><ContentProtection schemeIdUri="urn:mpeg:dash:sea:2012"><sea:CryptoPeriod IV="0x1" keyUriTemplate="%s"/></ContentProtection></AdaptationSet></Period>`},
	{clause: "ISO/IEC 23009-4; CryptoTimeline@keyUriTemplate", base: `<Period><AdaptationSet><Representation><ContentProtection><sea:CryptoTimeline keyUriTemplate="%s"/></ContentProtection></Representation></AdaptationSet></Period>`},
	{clause: "ISO/IEC 23009-4; CryptoPeriod@ivUriTemplate", base: `<Period><AdaptationSet><ContentProtection><sea:CryptoPeriod ivUriTemplate="%s"/></ContentProtection></AdaptationSet></Period>`},
	{clause: "ISO/IEC 23009-4; CryptoTimeline@ivUriTemplate", base: `<Period><AdaptationSet><ContentProtection><sea:CryptoTimeline ivUriTemplate="%s"/></ContentProtection></AdaptationSet></Period>`},
	{clause: "ISO/IEC 23009-4; ContentAuthenticity@authUrlTemplate", base: `<Period><AdaptationSet><EssentialProperty><sea:ContentAuthenticity authUrlTemplate="%s"/></EssentialProperty></AdaptationSet></Period>`},
	{clause: "IOP part 6; dashif:Laurl", left: `<Period><AdaptationSet><ContentProtection><dashif:Laurl licenseType="EME-1.0">%s</dashif:Laurl></ContentProtection></AdaptationSet></Period>`},
	{clause: "IOP part 6; dashif:Authzurl", left: `<Period><AdaptationSet><ContentProtection><dashif:Authzurl>%s</dashif:Authzurl></ContentProtection></AdaptationSet></Period>`},
	{clause: "IOP part 6; dashif:Certurl", left: `<Period><AdaptationSet><ContentProtection><dashif:Certurl certType="primary">%s</dashif:Certurl></ContentProtection></AdaptationSet></Period>`},
	{clause: "ms:laurl@licenseUrl", left: `<Period><AdaptationSet><ContentProtection><ms:laurl licenseUrl="%s"/><mspr:pro>%[1]s</mspr:pro></ContentProtection></AdaptationSet></Period>`},
	{clause: "5.10.4.5; callback events", left: `<Period><EventStream schemeIdUri="urn:mpeg:dash:event:callback:2015" value="1"><Event messageData="%s">%[1]s</Event></EventStream></Period>`},
	{clause: "5.10.2; data of events", left: `<Period><EventStream schemeIdUri="urn:scte:scte35:2014:xml+bin"><Event><scte35:Binary url="%s">/DAlAAAAAAAA</scte35:Binary></Event></EventStream></Period>`},
	{clause: "5.8.4.11; NTP servers", left: `<UTCTiming schemeIdUri="urn:mpeg:dash:utc:ntp:2014" value="%s"/>`},
}

// The documentation has each of these places, with its clause.
func TestCarriersAreDocumented(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/manifests.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range carriers {
		words := strings.Split(tc.clause, "; ")
		found := slices.ContainsFunc(strings.Split(string(page), "\n"), func(line string) bool {
			return !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) })
		})
		if !found {
			t.Errorf("no line has %q", words)
		}
	}
}

// A URI leads to the same file wherever it is in an MPD, relative or not, also below a
// BaseURL of the root, which the viewer does not have.
func TestCarriers(t *testing.T) {
	t.Parallel()
	const anchor, moved = `<BaseURL>/</BaseURL><Period><SegmentTemplate media="library/vidA/v1/m"/></Period>`, `<BaseURL>./</BaseURL><Period><SegmentTemplate media="../m"/></Period>`
	for _, tc := range carriers {
		t.Run(tc.clause, func(t *testing.T) {
			t.Parallel()
			format := tc.base + tc.document + tc.left
			with := func(uri string) string { return fmt.Sprintf(format, uri) }
			for in, want := range map[string]string{
				"x.mpd?a": "x.mpd?a", "/library/vidA/v1/x.mpd?a": "../x.mpd?a", "https://origin.example/library/vidA/v1/x": "../x",
				"../../v1/x.mpd": "../x.mpd", "/library/vidB/x": "/library/vidB/x", "https://cdn.example/library/vidA/v1/x": "https://cdn.example/library/vidA/v1/x",
			} {
				if tc.left != "" {
					want = in
				}
				check(t, manifest.DASH, "<MPD>", with(in)+"</MPD>", "", with(want)+"</MPD>", allowed)
			}
			if tc.base != "" {
				check(t, manifest.DASH, "<MPD>", anchor+with("library/vidA/v1/x.mpd")+"</MPD>", "", moved+with("../x.mpd")+"</MPD>", allowed)
			} else if !strings.Contains(tc.clause, "NTP") {
				check(t, manifest.DASH, "<MPD>", anchor+with("x.mpd")+"</MPD>", "", moved+with("x.mpd")+"</MPD>", allowed)
			}
		})
	}
}

// A relative URI in an unknown place must not lead elsewhere because a BaseURL changes.
func TestUnknownCarriers(t *testing.T) {
	t.Parallel()
	for _, unknown := range []string{
		`<Period x:link="a/b"/>`, `<Period poster="image.png"/>`, `<Period><AdaptationSet><Representation fancyUrl="?a"/></AdaptationSet></Period>`,
		`<SupplementalProperty schemeIdUri="urn:x" value="a/b"/>`, `<EssentialProperty><x:Map>a/b.json</x:Map></EssentialProperty>`,
		`<x:Poster>image.png</x:Poster>`, `<x:Poster href="a/b"/>`, `<Period><BaseURL>a/</BaseURL><x:y>../z</x:y></Period>`,
	} {
		root := `<MPD><BaseURL>/</BaseURL>` + unknown + `<Period><SegmentTemplate media="library/vidA/v1/m"/></Period></MPD>`
		check(t, manifest.DASH, "", root, "", refused, allowed)
		folder := strings.NewReplacer("<BaseURL>/<", "<BaseURL>./<", "library/vidA/v1/m", "m").Replace(root)
		check(t, manifest.DASH, "", folder, "", "", allowed)
	}
	for _, plain := range []string{
		`<Period id="a/b" duration="PT1.5S" xlink:actuate="onLoad"/>`, `<x:y z="urn:x:a/b" a="1.5" b="https://x.example/a" c="2026-01-01T00:00:00.5Z">text</x:y>`,
		`<ProgramInformation><Title>a/b.c</Title></ProgramInformation>`, `<UTCTiming schemeIdUri="urn:mpeg:dash:utc:ntp:2014" value="time.example"/>`, `<SupplementalProperty schemeIdUri="urn:x" value="1,2,3"/>`,
		`<Period><AdaptationSet mimeType="video/mp4" codecs="avc1.x" scte214:supplementalCodecs="a.b/c"><Representation frameRate="30000/1001"/></AdaptationSet></Period>`,
		`<Period><AdaptationSet><ContentProtection cenc:default_KID="x"><cenc:pssh>AA/BB==</cenc:pssh></ContentProtection></AdaptationSet></Period>`,
	} {
		in := `<MPD xsi:schemaLocation="a b.xsd"><BaseURL>/</BaseURL>` + plain + `<Period><SegmentTemplate media="library/vidA/v1/m"/></Period></MPD>`
		want := strings.NewReplacer("<BaseURL>/<", "<BaseURL>./<", "library/vidA/v1/m", "../m").Replace(in)
		check(t, manifest.DASH, "", in, "", want, allowed)
	}
}
