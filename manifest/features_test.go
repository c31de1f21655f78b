package manifest_test

import (
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/signed-playback/caddy-signed-playback/manifest"
)

// steeringTag is the tag that has a server choose from where a player loads.
const steeringTag = `EXT-X-CONTENT-STEERING:SERVER-URI="data:application/json,{}",PATHWAY-ID="A"`

// featureCases are manifests with features that are not allowed, and the results. An
// empty want means that the manifest stays as it is.
var featureCases = []struct{ name, in, want string }{
	{"tag", "#EXTM3U\r\n#" + steeringTag + "\r\n#EXT-X-STREAM-INF:PATHWAY-ID=\"A\"\r\nx.m3u8\r\n", "#EXTM3U\r\n#EXT-X-STREAM-INF:PATHWAY-ID=\"A\"\r\nx.m3u8\r\n"},
	{"tag at the end", "#EXTM3U\n#" + steeringTag, "#EXTM3U\n"},
	{"tag without attributes, quotes or sense", "#EXTM3U\n#EXT-X-CONTENT-STEERING\n#EXT-X-CONTENT-STEERING:\"\n#EXT-X-CONTENT-STEERING:SERVER-URI=//evil.test", "#EXTM3U\n"},
	{"tag after white space", "#EXTM3U\n\u00a0 \t#" + steeringTag + "\nx", "#EXTM3U\nx"},
	{"tag in comments, where hls.js finds it", "#EXTM3U\n##" + steeringTag + "\n# a #" + steeringTag + "\n#a" + steeringTag + "\n#x", "#EXTM3U\n#x"},
	{"tag in the first line", "#EXTM3U #" + steeringTag, refused},
	{"tag in a title, where hls.js finds it", "#EXTM3U\n#EXTINF:4,#" + steeringTag, refused},
	{"tag in another tag", "#EXTM3U\n#EXT-X-MEDIA:NAME=\"#" + steeringTag, refused},
	{"tag in a URI", "#EXTM3U\nx.ts?#" + steeringTag, refused},
	{"tag after another byte, which Shaka ignores", "#EXTM3U\n/" + steeringTag, refused},
	{"tag after a lone CR", "#EXTM3U\n# \r#" + steeringTag, refused},

	{"steering of the MPD", `<MPD><BaseURL serviceLocation="a">x/</BaseURL> <ContentSteering defaultServiceLocation="a">https://evil.test/</ContentSteering> </MPD>`, `<MPD><BaseURL serviceLocation="a">x/</BaseURL>  </MPD>`},
	{"steering with a prefix", `<MPD><x:ContentSteering xmlns:x="urn:x">s.json</x:ContentSteering></MPD>`, `<MPD></MPD>`},
	{"steering of a service", `<MPD><ServiceDescription id="0"><Latency target="3"/><ContentSteering>s</ContentSteering><PlaybackRate max="2"/></ServiceDescription></MPD>`, `<MPD><ServiceDescription id="0"><Latency target="3"/><PlaybackRate max="2"/></ServiceDescription></MPD>`},
	{"steering in CDATA", `<MPD><ContentSteering><![CDATA[/library/vidA/v1/s.json]]></ContentSteering></MPD>`, `<MPD></MPD>`},
	{"metrics", `<MPD><Metrics metrics="DVBErrors,HttpList(1)"><Range/><Reporting schemeIdUri="urn:dvb:dash:reporting:2014" value="1" dvb:reportingUrl="https://evil.test/"/></Metrics></MPD>`, `<MPD></MPD>`},
	{"metrics among the data of other parties", `<MPD><Period><EventStream><Event><MPD><Metrics/></MPD><x/></Event></EventStream></Period></MPD>`, `<MPD><Period><EventStream><Event><MPD></MPD><x/></Event></EventStream></Period></MPD>`},
	{"client data", `<MPD><ServiceDescription><ClientDataReporting><CMCDParameters keys="nor"/></ClientDataReporting></ServiceDescription></MPD>`, `<MPD><ServiceDescription></ServiceDescription></MPD>`},
	{"a BaseURL in metrics", `<MPD><Metrics><BaseURL>/</BaseURL></Metrics><SegmentURL media="../x"/></MPD>`, `<MPD><SegmentURL media="../x"/></MPD>`},
	{"elements in elements that go", `<MPD><Metrics><Metrics/><Period><BaseURL>/library/vidA/v1/</BaseURL></Period></Metrics><Metrics/></MPD>`, `<MPD></MPD>`},
	{"MPDs that the gateway does not see", `<MPD><Location>https://evil.test/x.mpd</Location><PatchLocation>p.txt</PatchLocation><PatchLocation>/other/p.mpd</PatchLocation><Location>/library/vidA/v1/n.mpd?x</Location><Period><ImportedMPD>ad.xml</ImportedMPD></Period></MPD>`, `<MPD><Location>../n.mpd?x</Location><Period></Period></MPD>`},
	{"MPDs that the gateway sees", `<MPD><Location>n.MPD?x=.txt</Location><PatchLocation>../p.mpp</PatchLocation><Location/><Period><ImportedMPD>ad.mpd</ImportedMPD></Period></MPD>`, ""},
	{"patch with new elements", `<Patch><add sel="/MPD"><Metrics/><Period><Label>a</Label></Period></add></Patch>`, `<Patch><add sel="/MPD"><Period><Label>a</Label></Period></add></Patch>`},
	{"patch of removed elements", `<Patch><replace sel="/MPD/p:ContentSteering[1]/text()">x</replace><add sel="/MPD" type="@Metrics">x</add><remove sel="/MPD/ServiceDescription/ClientDataReporting"/><replace sel="/MPD/@publishTime">x</replace></Patch>`, `<Patch><replace sel="/MPD/@publishTime">x</replace></Patch>`},
	{"patch of the location", `<Patch><replace sel="/MPD/Location/text()">https://evil.test/x.mpd</replace></Patch>`, `<Patch></Patch>`},
	{"remote elements of other hosts", `<MPD><Period xlink:href="https://evil.test/p" a="b"/><Period x:href='&#47;/evil.test/p'><BaseURL>/library/vidA/v1/</BaseURL></Period></MPD>`, `<MPD><Period  a="b"/><Period ><BaseURL>../</BaseURL></Period></MPD>`},
	{"remote elements in data", `<MPD><Period xlink:href="data:text/xml,a"/><Period xlink:href="blob:a"/></MPD>`, `<MPD><Period /><Period /></MPD>`},
	{"remote elements below a BaseURL of another host", `<MPD><BaseURL>https://evil.test/</BaseURL><Period><AdaptationSet xlink:href="a.xml"/></Period></MPD>`, `<MPD><BaseURL>https://evil.test/</BaseURL><Period><AdaptationSet /></Period></MPD>`},
	{"remote elements of the folder, and of a URN", `<MPD><Period xlink:href="p.xml"/><Period xlink:href="URN:mpeg:dash:resolve-to-zero:2013"/></MPD>`, ""},
	{"patch with a remote element of another host", `<Patch><add sel="/MPD/Period" type="@xlink:href">https://evil.test/p</add><replace sel="/MPD/Period/@xlink:href">p.xml</replace></Patch>`, `<Patch><replace sel="/MPD/Period/@xlink:href">p.xml</replace></Patch>`},
	{"remote elements", `<?xml version="1.0"?><Period><ServiceDescription><ClientDataReporting/></ServiceDescription><SegmentTemplate media="/library/vidA/v1/x"/></Period> <x:Period><Metrics/></x:Period>`, `<?xml version="1.0"?><Period><ServiceDescription></ServiceDescription><SegmentTemplate media="../x"/></Period> <x:Period></x:Period>`},
	{"remote events", `<EventStream><Event><Metrics/></Event></EventStream>`, `<EventStream><Event></Event></EventStream>`},
	{"MPD after a remote element", `<Period/><MPD><Metrics/></MPD>`, refused},
	{"remote element after an MPD", `<MPD/><Period><Metrics/></Period>`, refused},
	{"feature after a remote element", `<Period/><Metrics/>`, refused},
	{"comments", `<MPD><!-- <Metrics>a</Metrics> -- <ContentSteering/> --></MPD>`, ""},
	{"comment that ends at its start for dash.js and Shaka", `<MPD><!--> <Metrics/> --></MPD>`, refused},
	{"comment that ends at its start, with a hyphen", `<MPD><!---> <Metrics/> --></MPD>`, refused},
	{"instruction that ends early for dash.js", `<MPD><?a b=">"?></MPD>`, refused},
	{"instruction that is a tag without an end for Shaka", `<?a b?><!-- > <MPD/> --><MPD/>`, refused},
	{"instruction with an open quote", `<?a b='?><!-- '><MPD><Metrics/> --><MPD/>`, refused},
	{"attribute in whose value dash.js and Shaka read the end of the tag", `<MPD><Period _="/>"/></MPD>`, refused},
	{"attribute that renames the element for dash.js", `<MPD><SupplementalProperty nodeName="Metrics"/></MPD>`, refused},
	{"attribute that renames it in patches", `<Patch><add sel="/MPD"><Role tagName="Metrics"/></add></Patch>`, refused},
}

// No manifest makes a player report its requests, or ask a server which host to load
// from. The attacks are texts that only loose parsers read as such a feature.
func TestFeatures(t *testing.T) {
	t.Parallel()
	for _, tc := range featureCases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			check(t, formatOf(tc.in), "", tc.in, "", tc.want, 0)
			if strings.Contains(tc.want, tc.in) || tc.want == refused {
				return
			}
			_, stats, err := manifest.Rewrite(nil, []byte(tc.in), formatOf(tc.in), here, "", allowed)
			if err == nil && stats.Removed > 0 {
				t.Errorf("%d parts were removed although all are allowed", stats.Removed)
			}
		})
	}
}

// An element that the MPD schema does not have may report, so it goes, unless it is
// where the schema leaves the content to other parties. An allowed feature stays, and
// the other does not.
func TestInventedElements(t *testing.T) {
	t.Parallel()
	for range 50 {
		prefix, name := "p"+rand.Text(), "E"+rand.Text()
		invented := fmt.Sprintf(`<%s:%s xmlns:%[1]s="urn:%[2]s" a="b"><Period/>text<%[2]s/></%[1]s:%[2]s>`, prefix, name)
		for _, parent := range []string{"Period", "AdaptationSet", "Representation", "ServiceDescription", "SegmentTemplate", "Latency"} {
			in := fmt.Sprintf("<MPD>%[1]s<%[2]s>%[1]s<Label>x</Label>%[1]s</%[2]s></MPD>", invented, parent)
			check(t, manifest.DASH, "", in, "", fmt.Sprintf("<MPD><%[1]s><Label>x</Label></%[1]s></MPD>", parent), 0)
			check(t, manifest.DASH, "", in, "", "", manifest.Reporting)
		}
		for _, parent := range []string{"ContentProtection", "EssentialProperty", "SupplementalProperty", "Event", "ProgramInformation"} {
			check(t, manifest.DASH, "", fmt.Sprintf("<MPD><%[2]s>%[1]s</%[2]s></MPD>", invented, parent), "", "", 0)
		}
		for feature, want := range map[manifest.Features]string{
			manifest.Steering:  "<MPD><" + prefix + ":ContentSteering/></MPD>",
			manifest.Reporting: "<MPD><" + prefix + ":Metrics/></MPD>",
			allowed:            "",
		} {
			check(t, manifest.DASH, "", fmt.Sprintf("<MPD><%[1]s:ContentSteering/><%[1]s:Metrics/></MPD>", prefix), "", want, feature)
		}
	}
}

// checkFeatures checks that no player can find in a rewritten manifest what is not
// allowed.
func checkFeatures(t *testing.T, body []byte, f manifest.Format, query string) {
	t.Helper()
	out, stats, err := manifest.Rewrite(nil, body, f, here, query, 0)
	if err != nil {
		return
	}
	if f == manifest.HLS && strings.Contains(string(out), "EXT-X-CONTENT-STEERING") {
		t.Errorf("%q\nbecame %q", body, out)
	}
	if f == manifest.DASH {
		for _, shaka := range []bool{false, true} {
			for _, name := range looseElements(string(out), shaka) {
				if slices.Contains([]string{"ContentSteering", "Metrics", "Reporting", "ClientDataReporting"}, name) {
					t.Errorf("%q\nbecame %q, in which a player finds %s", body, out, name)
				}
			}
		}
	}
	whole, _, err := manifest.Rewrite(nil, body, f, here, query, allowed)
	if stats.Removed == 0 && (err != nil || string(whole) != string(out)) {
		t.Errorf("%q\nbecame %q, and %q, %v with all features allowed", body, out, whole, err)
	}
}

// looseElements returns the names of the elements that dash.js or Shaka finds in a
// document. Both use a parser made from tXml, which checks little.
func looseElements(doc string, shaka bool) (names []string) {
	pos := 0
	skip := func(mark string) {
		i := strings.Index(doc[min(pos, len(doc)):], mark)
		if pos += i + len(mark); i < 0 {
			pos = len(doc)
		}
	}
	at := func(i int) byte {
		if i < 0 || i >= len(doc) {
			return 0
		}
		return doc[i]
	}
	letter := func(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }
	name := func() string {
		from := pos
		for pos < len(doc) && !strings.ContainsRune("\r\n\t>/= ", rune(doc[pos])) {
			pos++
		}
		return doc[from:pos]
	}
	for skip("<"); pos < len(doc); skip("<") {
		switch {
		case at(pos) == '/' || at(pos) == '?' && !shaka:
			skip(">")
			continue
		case strings.HasPrefix(doc[pos:], "!-"):
			for skip(">"); pos < len(doc) && (at(pos-2) != '-' || at(pos-3) != '-'); {
				skip(">")
			}
			continue
		case strings.HasPrefix(strings.ToUpper(doc[pos:min(pos+8, len(doc))]), "![CDATA["):
			skip("]]>")
			continue
		}
		element := name()
		for at(pos) != '>' && pos < len(doc) {
			if letter(at(pos)) {
				attribute := name()
				for pos < len(doc) && at(pos) != '"' && at(pos) != '\'' && (!shaka || !letter(at(pos)) && at(pos) != '>') {
					pos++
				}
				quote := at(pos)
				pos++
				from := pos
				skip(string(quote))
				if !shaka && (attribute == "nodeName" || attribute == "tagName") {
					element = doc[from : pos-1]
				}
				if quote == '"' || quote == '\'' {
					continue
				}
				pos--
			}
			pos++
		}
		names = append(names, element[strings.LastIndexByte(element, ':')+1:])
	}
	return names
}
