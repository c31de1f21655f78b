package manifest_test

import (
	"strings"
	"testing"

	"github.com/signed-playback/caddy-signed-playback/manifest"
)

// seg is a template with a path from the root into the folder.
const seg = `<SegmentTemplate media="/library/vidA/v1/$Number$"/>`

// dashCases are MPDs and the results. An empty want means that the MPD stays as it
// is.
var dashCases = []struct{ name, in, want string }{
	{name: "M6 BaseURL in the folder moves what is below", in: `<MPD><BaseURL>../a/b/</BaseURL>` + seg + `</MPD>`, want: `<MPD><BaseURL>../a/b/</BaseURL><SegmentTemplate media="../../$Number$"/></MPD>`},
	{name: "M6 BaseURL below the elements that it applies to", in: `<MPD>` + seg + `<BaseURL>../a/b/</BaseURL></MPD>`, want: `<MPD><SegmentTemplate media="../../$Number$"/><BaseURL>../a/b/</BaseURL></MPD>`},
	{name: "M6 BaseURL applies to its own element only", in: `<MPD><Period><BaseURL>a/</BaseURL></Period><Period>` + seg + `</Period></MPD>`, want: `<MPD><Period><BaseURL>a/</BaseURL></Period><Period><SegmentTemplate media="../$Number$"/></Period></MPD>`},
	{name: "M6 no-break space before a BaseURL, which players in JavaScript drop", in: "<MPD><BaseURL>\u00a0/library/vidA/v1/</BaseURL></MPD>", want: refused},
	{name: "M6 no-break space before a URI, as a character reference", in: `<MPD><SegmentURL media="&#xFEFF;/library/vidA/v1/x"/></MPD>`, want: refused},
	{name: "M6 BaseURL that is a file", in: `<MPD><BaseURL>../a/x.mp4</BaseURL><SegmentURL media="/library/vidA/v1/a/x.mp4?y"/></MPD>`, want: `<MPD><BaseURL>../a/x.mp4</BaseURL><SegmentURL media="x.mp4?y"/></MPD>`},
	{name: "M6 empty BaseURLs", in: `<MPD><BaseURL/><BaseURL></BaseURL><BaseURL> </BaseURL>` + seg + `</MPD>`, want: `<MPD><BaseURL/><BaseURL></BaseURL><BaseURL> </BaseURL><SegmentTemplate media="../$Number$"/></MPD>`},
	{name: "M6 foreign BaseURL makes all below foreign", in: `<MPD><BaseURL>https://evil.example/library/vidA/v1/</BaseURL><Period><BaseURL>x/</BaseURL>` + seg + `<SegmentTemplate media="../../../../x"/></Period></MPD>`},
	{name: "M6 foreign BaseURL above one of the origin", in: `<MPD><BaseURL>https://evil.example/</BaseURL><Period><BaseURL>https://origin.example/library/vidA/v1/</BaseURL></Period></MPD>`, want: refused},
	{name: "M6 foreign BaseURL above a URI of the origin", in: `<MPD><BaseURL>https://evil.example/</BaseURL><SegmentURL media="https://origin.example/library/vidA/v1/x"/></MPD>`, want: refused},
	{name: "M6 Location is not subject to BaseURL", in: `<MPD><BaseURL>https://evil.example/</BaseURL><Location>/library/vidA/v1/manifest/x.mpd</Location></MPD>`, want: `<MPD><BaseURL>https://evil.example/</BaseURL><Location>x.mpd</Location></MPD>`},
	{name: "M6 alternatives, and what suits both", in: `<MPD><BaseURL>https://cdn.example/</BaseURL><BaseURL>/library/vidA/v1/x/</BaseURL><SegmentURL media="a/../b"/></MPD>`, want: `<MPD><BaseURL>https://cdn.example/</BaseURL><BaseURL>../x/</BaseURL><SegmentURL media="a/../b"/></MPD>`},
	{name: "M6 alternatives that a URI leads to the folder from alike", in: `<MPD><BaseURL>/library/vidA/v1/x/</BaseURL><BaseURL>/library/vidA/v1/y/</BaseURL>` + seg + `</MPD>`, want: `<MPD><BaseURL>../x/</BaseURL><BaseURL>../y/</BaseURL><SegmentTemplate media="../$Number$"/></MPD>`},
	{name: "M6 alternatives that are one folder on two hosts", in: `<MPD><BaseURL>https://origin.example/library/vidA/v1/x/</BaseURL><BaseURL>https://origin.example:8443/library/vidA/v1/x/</BaseURL>` + seg + `</MPD>`, want: `<MPD><BaseURL>../x/</BaseURL><BaseURL>../x/</BaseURL><SegmentTemplate media="../$Number$"/></MPD>`},
	{name: "M6 alternatives, one of which a URI needs rewriting for", in: `<MPD><BaseURL>https://cdn.example/</BaseURL><BaseURL>/library/vidA/v1/x/</BaseURL>` + seg + `</MPD>`, want: refused},
	{name: "M6 alternatives at different depths", in: `<MPD><BaseURL>/library/vidA/v1/</BaseURL><BaseURL>/library/vidA/v1/x/</BaseURL>` + seg + `</MPD>`, want: `<MPD><BaseURL>./</BaseURL><BaseURL>./</BaseURL><SegmentTemplate media="../$Number$"/></MPD>`},
	{name: "M6 alternatives, the last of which is at another depth", in: `<MPD><BaseURL>a/</BaseURL><BaseURL>b/</BaseURL><BaseURL>c/d/</BaseURL>` + seg + `</MPD>`, want: `<MPD><BaseURL>./</BaseURL><BaseURL>./</BaseURL><BaseURL>./</BaseURL><SegmentTemplate media="../$Number$"/></MPD>`},
	{name: "M6 alternatives at different depths, and a relative URI", in: `<MPD><BaseURL>/library/vidA/v1/</BaseURL><BaseURL>/library/vidA/v1/x/</BaseURL><SegmentURL media="y"/>` + seg + `</MPD>`, want: refused},
	{name: "M6 alternatives at different depths that are files", in: `<MPD><BaseURL>/library/vidA/v1/a</BaseURL><BaseURL>/library/vidA/v1/x/b</BaseURL>` + seg + `</MPD>`, want: refused},
	{name: "M6 alternatives multiply", in: `<MPD>` + strings.Repeat(`<BaseURL>a/</BaseURL><BaseURL>b/</BaseURL><Period>`, 5) + strings.Repeat("</Period>", 5) + `</MPD>`, want: refused},
	{name: "M6 alternatives that are alike do not", in: `<MPD>` + strings.Repeat(`<BaseURL>./</BaseURL><BaseURL>./</BaseURL><Period>`, 5) + seg + strings.Repeat("</Period>", 5) + `</MPD>`, want: `<MPD>` + strings.Repeat(`<BaseURL>./</BaseURL><BaseURL>./</BaseURL><Period>`, 5) + `<SegmentTemplate media="../$Number$"/>` + strings.Repeat("</Period>", 5) + `</MPD>`},
	{name: "M6 BaseURL outside, and what is below", in: `<MPD><BaseURL>https://origin.example/other/</BaseURL><SegmentURL media="x"/><SegmentURL media="/y"/></MPD>`},
	{name: "M6 BaseURL outside that leads back in", in: `<MPD><BaseURL>../../</BaseURL><SegmentURL media="v1/x"/></MPD>`, want: `<MPD><BaseURL>./</BaseURL><SegmentURL media="../x"/></MPD>`},
	{name: "M6 BaseURL outside with a query", in: `<MPD><BaseURL>/?a&amp;b</BaseURL><SegmentURL media="library/vidA/v1/x"/></MPD>`, want: `<MPD><BaseURL>./?a&amp;b</BaseURL><SegmentURL media="../x"/></MPD>`},
	{name: "M6 BaseURL outside that leads in and out", in: `<MPD><BaseURL>../../</BaseURL><SegmentURL media="v1/x"/><SegmentURL media="v2/x"/></MPD>`, want: refused},
	{name: "M6 BaseURL outside that leads in, and URIs with a host", in: `<MPD><BaseURL>../../</BaseURL><SegmentURL media="v1/x"/><SegmentURL media="https://origin.example/y"/></MPD>`, want: `<MPD><BaseURL>./</BaseURL><SegmentURL media="../x"/><SegmentURL media="https://origin.example/y"/></MPD>`},
	{name: "M6 BaseURLs outside, below one in the folder", in: `<MPD><BaseURL>../a/</BaseURL><Period><BaseURL>/</BaseURL><SegmentURL media="library/vidA/v1/x"/></Period></MPD>`, want: `<MPD><BaseURL>../a/</BaseURL><Period><BaseURL>../manifest/</BaseURL><SegmentURL media="../x"/></Period></MPD>`},
	{name: "M6 BaseURL outside below a foreign one", in: `<MPD><BaseURL>https://cdn.example/</BaseURL><Period><BaseURL>https://origin.example/</BaseURL><SegmentURL media="library/vidA/v1/x"/></Period></MPD>`, want: refused},
	{name: "M6 BaseURLs outside as alternatives that lead back in", in: `<MPD><BaseURL>https://origin.example/</BaseURL><BaseURL>https://origin.example:8443/</BaseURL><SegmentURL media="library/vidA/v1/x"/></MPD>`, want: `<MPD><BaseURL>./</BaseURL><BaseURL>./</BaseURL><SegmentURL media="../x"/></MPD>`},
	{name: "M6 alternatives within and outside that lead back in alike", in: `<MPD><BaseURL>/</BaseURL><BaseURL>./</BaseURL><Period><BaseURL>x/</BaseURL>` + seg + `</Period></MPD>`, want: `<MPD><BaseURL>./</BaseURL><BaseURL>./</BaseURL><Period><BaseURL>./</BaseURL><SegmentTemplate media="../$Number$"/></Period></MPD>`},
	{name: "M6 alternatives within and outside, and a URI that only one has in the folder", in: `<MPD><BaseURL>/</BaseURL><BaseURL>./</BaseURL><Period><BaseURL>x/</BaseURL>` + seg + `<SegmentURL media="y"/></Period></MPD>`, want: refused},
	{name: "M6 alternatives within and outside, and a URI that is the BaseURL", in: `<MPD><BaseURL>/</BaseURL><BaseURL>./</BaseURL><Period><BaseURL>x</BaseURL>` + seg + `<SegmentURL media="?y"/></Period></MPD>`, want: refused},
	{name: "M6 BaseURL outside that leads back in, beside one in the folder", in: `<MPD><BaseURL>/</BaseURL><BaseURL>../x/</BaseURL>` + seg + `</MPD>`, want: `<MPD><BaseURL>./</BaseURL><BaseURL>../x/</BaseURL><SegmentTemplate media="../$Number$"/></MPD>`},
	{name: "M6 BaseURL in CDATA", in: `<MPD><BaseURL> <![CDATA[/library/vidA/v1/a&b/?c&d]]> </BaseURL></MPD>`, want: `<MPD><BaseURL> <![CDATA[../a&b/?c&d]]> </BaseURL></MPD>`},
	{name: "M6 BaseURL in pieces", in: `<MPD><BaseURL>https://<!-- -->evil.example/</BaseURL></MPD>`, want: refused},
	{name: "M6 BaseURL in text and CDATA", in: `<MPD><BaseURL>/library<![CDATA[/vidA/v1/]]></BaseURL></MPD>`, want: refused},
	{name: "M6 BaseURL beside a comment", in: `<MPD><BaseURL><!-- a -->/library/vidA/v1/<?b?></BaseURL></MPD>`, want: `<MPD><BaseURL><!-- a -->../<?b?></BaseURL></MPD>`},
	{name: "M6 element in a BaseURL", in: `<MPD><BaseURL><a/></BaseURL></MPD>`, want: refused},
	{name: "M6 BaseURL that would end its CDATA section", in: "<MPD><BaseURL><![CDATA[/library/vidA/v1/]]\t>]]></BaseURL></MPD>", want: refused},
	{name: "M6 BaseURL that is very long", in: `<MPD><BaseURL>` + strings.Repeat("a", 4000) + `</BaseURL></MPD>`, want: refused},
	{name: "M6 template with a zero-padded number", in: `<MPD><SegmentTemplate media="/library/vidA/v1/$Number%05d$/$$.m4s"/></MPD>`, want: `<MPD><SegmentTemplate media="../$Number%05d$/$$.m4s"/></MPD>`},
	{name: "M6 identifiers that climb lead nowhere with a token", in: `<MPD><SegmentTemplate media="$RepresentationID$/x"/><Representation id="../../../evil"/><Representation id="https://evil.example"/></MPD>`},
	{name: "M6 xlink with any prefix", in: `<MPD xmlns:q="http://www.w3.org/1999/xlink"><Period q:href="/library/vidA/v1/p"/></MPD>`, want: `<MPD xmlns:q="http://www.w3.org/1999/xlink"><Period q:href="../p"/></MPD>`},
	{name: "M6 xlink prefix that is not declared", in: `<MPD><Period xlink:href="/library/vidA/v1/p"/></MPD>`, want: `<MPD><Period xlink:href="../p"/></MPD>`},
	{name: "M6 xlink prefix that means another thing, which players ignore", in: `<MPD xmlns:xlink="urn:x"><Period xlink:href="/library/vidA/v1/p"/></MPD>`, want: `<MPD xmlns:xlink="urn:x"><Period xlink:href="../p"/></MPD>`},
	{name: "M6 xlink is subject to BaseURL of the elements around", in: `<MPD><BaseURL>../a/b/</BaseURL><Period xlink:href="/library/vidA/v1/p"><BaseURL>c/</BaseURL></Period></MPD>`, want: `<MPD><BaseURL>../a/b/</BaseURL><Period xlink:href="../../p"><BaseURL>c/</BaseURL></Period></MPD>`},
	{name: "M6 license servers are left alone", in: `<MPD><ContentProtection><Laurl>https://origin.example/library/vidA/v1/x</Laurl><BaseURL>/library/vidA/v1/x</BaseURL></ContentProtection></MPD>`},
	{name: "M6 events are left alone", in: `<MPD><EventStream><Event><MPD><BaseURL>/library/vidA/v1/x</BaseURL></MPD></Event></EventStream></MPD>`},

	{name: "M7 document type", in: `<!DOCTYPE MPD><MPD/>`, want: refused},
	{name: "M7 document type within", in: `<MPD><!DOCTYPE MPD></MPD>`, want: refused},
	{name: "M7 entities that multiply", in: `<!DOCTYPE MPD [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><MPD>&b;</MPD>`, want: refused},
	{name: "M7 entity that is not declared", in: `<MPD><BaseURL>&evil;</BaseURL></MPD>`, want: refused},
	{name: "M7 entity that is not declared, anywhere", in: `<MPD id="&evil;"/>`, want: refused},
	{name: "M7 character reference to NUL", in: `<MPD><BaseURL>&#0;</BaseURL></MPD>`, want: refused},
	{name: "M7 character reference beyond Unicode", in: `<MPD><BaseURL>&#x110000;</BaseURL></MPD>`, want: refused},
	{name: "M7 ampersand alone", in: `<MPD id="a&b"/>`, want: refused},
	{name: "M7 depth", in: strings.Repeat("<MPD>", 65) + strings.Repeat("</MPD>", 65), want: refused},
	{name: "M7 depth that is allowed", in: strings.Repeat("<MPD>", 64) + strings.Repeat("</MPD>", 64)},
	{name: "M7 a million elements deep", in: strings.Repeat("<MPD>", 1_000_000), want: refused},
	{name: "M7 two roots", in: `<MPD/><MPD/>`, want: refused},
	{name: "M7 other root", in: `<html><MPD/></html>`, want: refused},
	{name: "M7 no root", in: `<!-- <MPD/> -->`, want: refused},
	{name: "M7 nothing", in: " ", want: refused},
	{name: "M7 text before the root", in: `x<MPD/>`, want: refused},
	{name: "M7 text after the root", in: `<MPD/>x`, want: refused},
	{name: "M7 CDATA after the root", in: `<MPD/><![CDATA[]]>`, want: refused},
	{name: "M7 comments and instructions around the root", in: "\ufeff<?xml version='1.0' encoding='UTF-8' ?>\n<?a b='/library/vidA/v1/' ?><!-- <MPD> --><MPD/><!-- > -->\n"},
	{name: "M7 prefixed elements", in: `<d:MPD xmlns:d="urn:mpeg:dash:schema:mpd:2011"><d:BaseURL>/library/vidA/v1/</d:BaseURL></d:MPD>`, want: `<d:MPD xmlns:d="urn:mpeg:dash:schema:mpd:2011"><d:BaseURL>../</d:BaseURL></d:MPD>`},
	{name: "M7 end tag with another prefix", in: `<a:MPD></b:MPD>`, want: refused},
	{name: "M7 UTF-16", in: "\xff\xfe<\x00M\x00P\x00D\x00/\x00>\x00", want: refused},
	{name: "M7 UTF-16 by declaration", in: `<?xml version="1.0" encoding="utf-16"?><MPD/>`, want: refused},
	{name: "M7 UTF-7 by declaration", in: `<?xml version="1.0" encoding='UTF-7'?><MPD/>`, want: refused},
	{name: "ASCII that is declared as such", in: `<?xml version="1.0" encoding="us-ascii"?><MPD/>`},
	{name: "ASCII that is declared as Latin-1", in: `<?xml version='1.0' encoding='ISO-8859-1'?><MPD/>`},
	{name: "ASCII that is declared as a code page of Windows", in: `<?xml version='1.0' encoding='Windows-1252'?><MPD/>`},
	{name: "UTF-8 without its hyphen", in: `<?xml version='1.0' encoding='utf8'?><MPD id="ä"/>`},
	{name: "more than ASCII that is declared as Latin-1", in: `<?xml version='1.0' encoding='ISO-8859-1'?><MPD id="ä"/>`, want: refused},
	{name: "ASCII that players decode", in: `<?xml version='1.0' encoding='ISO-2022-JP'?><MPD/>`, want: refused},
	{name: "Shift JIS, in which a backslash is none", in: `<?xml version='1.0' encoding='Shift_JIS'?><MPD/>`, want: refused},
	{name: "EBCDIC", in: `<?xml version='1.0' encoding='cp037'?><MPD/>`, want: refused},
	{name: "an encoding that is a URI", in: `<?xml version='1.0' encoding='https://evil.example/library'?><MPD/>`, want: refused},
	{name: "M7 Latin-1", in: "<MPD id='\xe4'/>", want: refused},
	{name: "M7 declaration that is malformed", in: `<?xml version="1.0" encoding=utf-8?><MPD/>`, want: refused},
	{name: "F4 declaration after blank lines, as scripts write it", in: "\ufeff\r\n <?xml version='1.0' encoding='UTF-8'?><MPD><BaseURL>/library/vidA/v1/</BaseURL></MPD>", want: "\ufeff\r\n <?xml version='1.0' encoding='UTF-8'?><MPD><BaseURL>../</BaseURL></MPD>"},
	{name: "M7 declaration that is late", in: `<!-- --><?xml version="1.0"?><MPD/>`, want: refused},
	{name: "M7 declaration of UTF-16 after a blank line", in: "\n<?xml version='1.0' encoding='UTF-16'?><MPD/>", want: refused},
	{name: "F13 ASCII by other names", in: `<?xml version="1.0" encoding="ISO8859-1"?><MPD/>`},
	{name: "M7 stylesheets are no declarations", in: `<?xml-stylesheet href="/library/vidA/v1/x"?><MPD/>`},
	{name: "M7 tags that cross", in: `<MPD><a><b></a></b></MPD>`, want: refused},
	{name: "M7 end tag alone", in: `<MPD/></MPD>`, want: refused},
	{name: "M7 document that ends early", in: `<MPD><Period>`, want: refused},
	{name: "M7 tag that ends early", in: `<MPD><Period id="`, want: refused},
	{name: "M7 comment that does not end", in: `<MPD><!-- </MPD>`, want: refused},
	{name: "M7 CDATA that does not end", in: `<MPD><![CDATA[</MPD>`, want: refused},
	{name: "M7 instruction that does not end", in: `<MPD><?a </MPD>`, want: refused},
	{name: "M7 attribute without quotes", in: `<MPD id=1/>`, want: refused},
	{name: "M7 attribute without a value", in: `<MPD id/>`, want: refused},
	{name: "M7 attributes without white space", in: `<MPD a="1"b="2"/>`, want: refused},
	{name: "M7 tag within an attribute", in: `<MPD a="<"/>`, want: refused},
	{name: "M7 attribute twice, of which parsers take either", in: `<MPD><SegmentURL media="x" media="/library/vidA/v1/x"/></MPD>`, want: refused},
	{name: "M7 many attributes", in: `<MPD ` + strings.Repeat(`a="" `, 65) + `/>`, want: refused},
	{name: "M7 name that is none", in: `<MPD><1/></MPD>`, want: refused},
	{name: "M7 less-than sign at the end", in: `<MPD/><`, want: refused},
	{name: "M7 quotes stay as they are", in: `<MPD><SegmentURL media='/library/vidA/v1/"x"' index = "/library/vidA/v1/'"/></MPD>`, want: `<MPD><SegmentURL media='../&quot;x&quot;' index = "../&apos;"/></MPD>`},
	{name: "M7 references in the query stay as they are", in: `<MPD><SegmentURL media="/library/vidA/v1/x?a&#38;b&#x26;c&amp;d&apos;"/></MPD>`, want: `<MPD><SegmentURL media="../x?a&#38;b&#x26;c&amp;d&apos;"/></MPD>`},
	{name: "M7 references hide a host", in: `<MPD><SegmentURL media="&#x2f;&#47;evil.example/library/vidA/v1/x"/></MPD>`},
	{name: "M7 long references hide a host", in: `<MPD><SegmentURL media="&#x00002f;&#0000047;evil.example/library/vidA/v1/x"/></MPD>`},
	{name: "M7 references hide white space", in: `<MPD><SegmentURL media="&#32;/library/vidA/v1/x&#x9;"/><SegmentURL media="&#32;/library/vidA/v1/x?&#x9;"/></MPD>`, want: `<MPD><SegmentURL media="../x"/><SegmentURL media="../x?&#x9;"/></MPD>`},
	{name: "M7 references hide a query", in: `<MPD><SegmentURL media="/library/vidA/v1/x&#63;/../../y"/></MPD>`, want: `<MPD><SegmentURL media="../x&#63;/../../y"/></MPD>`},
	{name: "M7 references hide dots", in: `<MPD><SegmentURL media="&#46;./&#x2e;&#46;/v1/x"/></MPD>`, want: `<MPD><SegmentURL media="../x"/></MPD>`},
	{name: "M7 line break in an attribute is a space", in: "<MPD><SegmentURL media=\"/library/vidA/v1/a\nb\"/></MPD>", want: `<MPD><SegmentURL media="../a b"/></MPD>`},
}

// The error names an encoding that the gate does not read.
func TestEncodingIsNamed(t *testing.T) {
	t.Parallel()
	for name, label := range map[string]string{"Shift_JIS": "", "UTF-7": "", "EBCDIC-CP-US": "", "ISO-8859-1": "\xe9"} {
		_, _, err := manifest.Rewrite(nil, []byte("<?xml version='1.0' encoding='"+name+"'?><MPD id='"+label+"'/>"), manifest.DASH, here, "", allowed)
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDASH(t *testing.T) {
	t.Parallel()
	for _, tc := range dashCases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			check(t, manifest.DASH, "", tc.in, "", tc.want, allowed)
		})
	}
}
