package manifest_test

import (
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/signed-playback/caddy-signed-playback/manifest"
)

// refused is the want of a case whose manifest is invalid.
const refused = "(refused)"

// hlsCases are playlists without their first line, and the result. An empty want
// means that the playlist stays as it is.
var hlsCases = []struct{ name, in, query, want string }{
	{name: "M1 empty lines and comments", in: "\n\n  \n\t\n#\n#URI=\"/library/vidA/v1/x\"\n# /library/vidA/v1/x"},
	{name: "M1 no line break at the end", in: "/library/vidA/v1/x", want: "../x"},
	{name: "M1 CRLF", in: "#EXTINF:1,\r\n/library/vidA/v1/x\r\n\r\n", want: "#EXTINF:1,\r\n../x\r\n\r\n"},
	{name: "M1 lone CR, which starts a line for some players", in: "# comment\r/library/vidA/v1/x\n", want: refused},
	{name: "M1 lone CR at the end", in: "x\r", want: refused},
	{name: "M1 two CR", in: "x\r\r\n", want: refused},
	{name: "M1 NUL", in: "x\x00y", want: refused},
	{name: "M1 very long line", in: strings.Repeat("a", 1<<20)},
	{name: "M1 white space before a tag, which video.js and ExoPlayer drop", in: " #EXT-X-MAP:URI=\"/library/vidA/v1/x\"\n\u00a0\t#EXT-X-MAP:URI=\"/library/vidA/v1/x\"", want: " #EXT-X-MAP:URI=\"../x\"\n\u00a0\t#EXT-X-MAP:URI=\"../x\""},
	{name: "M1 white space before a definition, which only some players see", in: " #EXT-X-DEFINE:NAME=\"a\",VALUE=\"b\"", want: refused},
	{name: "M1 white space before a comment", in: " # /library/vidA/v1/x\n\u00a0\ufeff"},
	{name: "M1 no-break space before a URI, which video.js drops", in: "\u00a0/library/vidA/v1/x", want: refused},
	{name: "M1 no-break space before a URI in quotes", in: "#EXT-X-MAP:URI=\"\ufeff/library/vidA/v1/x\"", want: refused},
	{name: "M1 tags in comments, which hls.js finds in multivariant playlists", in: "##EXT-X-MEDIA:TYPE=AUDIO,URI=\"/library/vidA/v1/x\"\n# #EXT-X-SESSION-KEY:URI=\"/library/vidA/v1/k\"", want: "##EXT-X-MEDIA:TYPE=AUDIO,URI=\"../x\"\n# #EXT-X-SESSION-KEY:URI=\"../k\""},
	{name: "M1 tag in a comment whose URI cannot be read", in: "# #EXT-X-MEDIA:URI=/library/vidA/v1/x", want: refused},
	{name: "M1 tag after another in a comment", in: "# #EXT-X-A:b #EXT-X-MEDIA:TYPE=AUDIO,URI=\"/library/vidA/v1/x\"", want: "# #EXT-X-A:b #EXT-X-MEDIA:TYPE=AUDIO,URI=\"../x\""},
	{name: "M1 tags in comments without a URI", in: "# see #EXT-X-MEDIA: a, \"b and #EXT-X-DEFINE:NAME=\"a\"\n## #EXT-X-MAP"},
	{name: "M1 tag in a title", in: "#EXTINF:1,a #EXT-X-KEY:URI=\"/library/vidA/v1/x\"", want: "#EXTINF:1,a #EXT-X-KEY:URI=\"../x\""},
	{name: "M1 line separator in a title, where JavaScript ends it", in: "#EXTINF:1,Title\u2028/library/vidA/v1/x", want: refused},
	{name: "M1 paragraph separator in a comment", in: "# a\u2029/library/vidA/v1/x", want: refused},
	{name: "M1 line separator in a URI", in: "a\u2028b"},
	{name: "M1 URI after a duration, where hls.js expects it", in: "#EXTINF:4 /library/vidA/v1/x", want: refused},
	{name: "M1 URI after the end of a duration", in: "#EXTINF: 4.1.2/../../library/vidA/v1/x", want: refused},
	{name: "M1 variable after a duration", in: "#EXTINF:4 {$a}", want: refused},
	{name: "M1 durations without a comma", in: "#EXTINF:4\n#EXTINF: 4.5 \n#EXTINF:-1 group=\"a\",Title, /library/vidA/v1/x\n#EXTINF:4 https://cdn.example/x\n#EXTINF:4 , /library/vidA/v1/x"},
	{name: "M1 white space around a URI", in: "\t/library/vidA/v1/x \t", want: "\t../x \t"},
	{name: "M1 foreign hosts and schemes", in: "https://evil.example/library/vidA/v1/x\nfile:///etc/passwd\ndata:text/plain,x\njavascript:x\nhttp://169.254.169.254/"},
	{name: "second EXTM3U", in: "#EXTM3U\n#EXTM3U:URI=\"/library/vidA/v1/x\"", want: "#EXTM3U\n#EXTM3U:URI=\"../x\""},

	{name: "M4 comma within quotes", in: `#EXT-X-MEDIA:NAME="a,URI=b",URI="/library/vidA/v1/a,b"`, want: `#EXT-X-MEDIA:NAME="a,URI=b",URI="../a,b"`},
	{name: "M4 backslash does not escape a quote", in: `#EXT-X-MEDIA:NAME="a\",URI="/library/vidA/v1/x"`, want: `#EXT-X-MEDIA:NAME="a\",URI="../x"`},
	{name: "M4 unbalanced quote", in: `#EXT-X-KEY:METHOD=AES-128,URI="/library/vidA/v1/x`, want: refused},
	{name: "M4 text after a quote", in: `#EXT-X-KEY:URI="a"b`, want: refused},
	{name: "M4 quote within an unquoted value", in: `#EXT-X-KEY:METHOD=A"B,URI="a"`},
	{name: "M4 unquoted URI", in: "#EXT-X-KEY:METHOD=AES-128,URI=/library/vidA/v1/x", want: refused},
	{name: "M4 duplicate URI", in: `#EXT-X-MAP:URI="a",URI="/library/vidA/v1/x"`, want: refused},
	{name: "M4 attribute without a value", in: `#EXT-X-MAP:FOO,URI="a"`},
	{name: "M4 attribute without a name", in: `#EXT-X-MAP:="a"`},
	{name: "M4 nothing between commas", in: `#EXT-X-MAP:URI="a",,B=1`},
	{name: "M4 comma at the end and white space", in: `#EXT-X-MAP: URI = "/library/vidA/v1/x" , B=1 ,`, want: `#EXT-X-MAP: URI = "../x" , B=1 ,`},
	{name: "M4 white space within the quotes", in: `#EXT-X-MAP:URI=" /library/vidA/v1/x "`, want: `#EXT-X-MAP:URI=" ../x "`},
	{name: "M4 empty URI", in: `#EXT-X-MAP:URI=""`},
	{name: "M4 no attributes", in: "#EXT-X-MAP\n#EXT-X-MAP:"},
	{name: "M2 other attributes keep their values", in: `#EXT-X-SESSION-DATA:DATA-ID="a",VALUE="/library/vidA/v1/x",uri="/library/vidA/v1/x"`},
	{name: "M2 unknown tag without attributes", in: "#EXT-X-TOMORROW:what \"ever, it = is\n#EXTGRP:URI\n#EXT-OATCLS-SCTE35:/DAlAAAURI=,"},
	{name: "M2 unknown tag with a URI", in: `#EXT-X-TOMORROW:A="b",URI="/library/vidA/v1/x"`, want: `#EXT-X-TOMORROW:A="b",URI="../x"`},
	{name: "M2 unknown tag whose URI cannot be read", in: `#EXT-X-TOMORROW:URI=/library/vidA/v1/x`, want: refused},
	{name: "M2 unknown tag with a vertical tab after URI, which JavaScript trims", in: "#EXT-X-TOMORROW:URI\v=\"/library/vidA/v1/x\"", want: "#EXT-X-TOMORROW:URI\v=\"../x\""},
	{name: "M2 unknown tag with a no-break space before URI", in: "#EXT-X-TOMORROW:A=1,\u00a0URI=\"/library/vidA/v1/x\"", want: "#EXT-X-TOMORROW:A=1,\u00a0URI=\"../x\""},
	{name: "M2 unknown tag with a byte order mark before URI", in: "#EXT-X-TOMORROW:\ufeffURI=\"/library/vidA/v1/x\"", want: "#EXT-X-TOMORROW:\ufeffURI=\"../x\""},
	{name: "M2 unknown tag with a URI in a list that is none", in: `#EXT-X-TOMORROW:"a" b,URI="/library/vidA/v1/x"`, want: `#EXT-X-TOMORROW:"a" b,URI="../x"`},
	{name: "M2 attributes of vendors, which ExoPlayer takes for URI", in: `#EXT-X-MAP:X-URI="/library/vidA/v1/x",X-ACME-URI="/library/vidA/v1/y",URI="z",X-B-URI=none`, want: `#EXT-X-MAP:X-URI="../x",X-ACME-URI="../y",URI="z",X-B-URI=none`},
	{name: "M2 preload of an interstitial", in: `#EXT-X-DATERANGE:ID="p",CLASS="com.apple.hls.preload",X-URI="/library/vidA/v1/x"`, want: `#EXT-X-DATERANGE:ID="p",CLASS="com.apple.hls.preload",X-URI="../x"`},
	{name: "M2 unknown tag with the attribute of a vendor", in: "#EXT-X-TOMORROW:ACME-URI= \"/library/vidA/v1/x\"\n#EXT-X-TOMORROW:a b,ACME-URI=/library", want: "#EXT-X-TOMORROW:ACME-URI= \"../x\"\n#EXT-X-TOMORROW:a b,ACME-URI=/library"},
	{name: "M2 tag without a colon, which ExoPlayer accepts", in: `#EXT-X-MAP URI="/library/vidA/v1/x"`, want: `#EXT-X-MAP URI="../x"`},
	{name: "M2 tag with a space before its colon", in: `#EXT-X-MAP :URI= "/library/vidA/v1/x"`, want: `#EXT-X-MAP :URI= "../x"`},
	{name: "M2 tag without a colon whose name ends in URI", in: `#EXT-X-MAPURI="/library/vidA/v1/x"`, want: `#EXT-X-MAPURI="../x"`},
	{name: "M2 tag without a colon but in its URI", in: `#EXT-X-MAP URI="https://origin.example/library/vidA/v1/x"`, want: `#EXT-X-MAP URI="../x"`},
	{name: "M2 titles are not attribute lists", in: `#EXTINF:1,URI="/library/vidA/v1/x`},
	{name: "M2 tags without attributes that have a URI nevertheless", in: "#EXT-X-PROGRAM-DATE-TIME:URI=\"/library/vidA/v1/x\"\n#EXT-X-BYTERANGE:100@0", want: "#EXT-X-PROGRAM-DATE-TIME:URI=\"../x\"\n#EXT-X-BYTERANGE:100@0"},
	{name: "M2 tag without attributes whose URI cannot be read", in: "#EXT-X-PROGRAM-DATE-TIME:URI=\"/library/vidA/v1/", want: refused},
	{name: "M2 a tag whose name begins like EXTINF", in: `#EXTINF0:URI="/library/vidA/v1/x"`, want: `#EXTINF0:URI="../x"`},

	{name: "F10 lists without a URI", in: "#EXT-X-STREAM-INF:BANDWIDTH=1,CODECS=\"\"a,b\"\",,FRAME-RATE\nx.m3u8\n#EXT-X-MEDIA:=,\"\n#EXT-X-START:TIME-OFFSET\n#EXT-X-DATERANGE:ID=\"a\"b\"\n#EXT-X-KEY:METHOD=NONE,IV=\"\n#EXT-X-PART-INF:\"URI\""},
	{name: "F10 JSON in values", in: `#EXT-X-SESSION-DATA:DATA-ID="a",VALUE="{"URI":"/library/vidA/v1/x","b":["URI","c=d"],"e":"?URI=f&X-ASSET-LIST=g"}"` + "\n" + `#EXT-X-DATERANGE:ID="a",X-DATA="{"SERVER-URI":{}}",X-B`},
	{name: "F10 the URI of a list with mistakes", in: `#EXT-X-MEDIA:TYPE=AUDIO,NAME=""a, "b"",,DEFAULT,URI="/library/vidA/v1/x" ,X` + "\n" + `#EXT-X-I-FRAME-STREAM-INF:CODECS="a"URI="/library/vidA/v1/x"`, want: `#EXT-X-MEDIA:TYPE=AUDIO,NAME=""a, "b"",,DEFAULT,URI="../x" ,X` + "\n" + `#EXT-X-I-FRAME-STREAM-INF:CODECS="a"URI="../x"`},
	{name: "F10 a list before its mistake", in: `#EXT-X-DATERANGE:X-ASSET-URI="/library/vidA/v1/a",,X-ASSET-LIST="/library/vidA/v1/b","c`, want: `#EXT-X-DATERANGE:X-ASSET-URI="../a",,X-ASSET-LIST="../b","c`},
	{name: "F10 a URI without quotes in a list with mistakes, which Shaka reads", in: `#EXT-X-MEDIA:NAME=""a"",URI=/library/vidA/v1/x`, want: refused},
	{name: "F10 URIs without quotes that stay in all readings", in: "#EXT-X-MEDIA:TYPE=CLOSED-CAPTIONS,URI=NONE\n#EXT-X-MEDIA:,,URI=,A=b\n#EXT-X-KEY:URI=../k.key?a,IV=0x1\n#EXT-X-KEY:URI=https://cdn.example/k"},
	{name: "F10 a URI without quotes that players end at a space", in: "#EXT-X-KEY:URI=../k /../../../x", want: refused},
	{name: "F10 a URI without quotes in which ffmpeg finds another", in: "#EXT-X-MAP:URI = URI=/library/vidA/v1/x", want: refused},
	{name: "F10 a URI in two pairs of quotes", in: `#EXT-X-MEDIA:URI=""/library/vidA/v1/x""`, want: refused},
	{name: "F10 a URI without its last quote in a list with mistakes", in: `#EXT-X-MEDIA:,,URI="/library/vidA/v1/x`, want: refused},
	{name: "F10 a URI in JSON as an attribute", in: `#EXT-X-SESSION-DATA:VALUE="{"a",URI="/library/vidA/v1/x"}"`, want: refused},
	{name: "F10 a list of a URI that no player finds without quotes", in: `#EXT-X-MEDIA:,,ACME-URI=/library/vidA/v1/x`},
	{name: "F10 a definition with mistakes", in: "#EXT-X-DEFINE:NAME=\"a\",VALUE=\"{\"b\":1}\"\n#EXT-X-DEFINE:NAME=\"c\",,VALUE=\"d\"\nx.ts?{$a}"},
	{name: "F10 a variable after a definition with mistakes", in: "#EXT-X-DEFINE:NAME=\"c\",VALUE=\"d\"\n#EXT-X-DEFINE:,\n{$c}/x.ts", want: refused},

	{name: "F7 tags whose value is a URI", in: "#EXT-X-PREFETCH:/library/vidA/v1/2.ts\n#EXT-X-TWITCH-PREFETCH: https://origin.example/library/vidA/v1/2.ts?a=\"b\n #EXT-X-PREFETCH:\\library\\vidA/v1/2.ts\t\n#EXTACME:../../../../library/vidA/v1/2.ts?a=b,c#d", want: "#EXT-X-PREFETCH:../2.ts\n#EXT-X-TWITCH-PREFETCH: https://origin.example/library/vidA/v1/2.ts?a=\"b\n #EXT-X-PREFETCH:../2.ts\t\n#EXTACME:../2.ts?a=b,c#d"},
	{name: "F7 tags whose value leads elsewhere, or is no URI", in: "#EXT-X-PREFETCH:2.ts\n#EXT-X-PREFETCH:/library/vidB/v1/2.ts\n#EXT-X-PREFETCH:https://cdn.example/library/vidA/v1/2.ts\n#EXT-X-PREFETCH:/library/vidA/v1/2.ts or not\n#EXT-X-PREFETCH:/library/vidA/v1/{$a}\n#EXT-OATCLS-SCTE35:/DAlAAAAAAAAAP/wFAUAAAABf+/+AAAAAH4AKTLgAAEAAAAAAAAAAA==\n#EXT-X-PLAYLIST-TYPE:VOD\n#EXT-X-A:/"},
	{name: "F7 attributes of vendors", in: `#EXT-X-ACME:LOGO="/library/vidA/v1/x.png?a b",Name="/library/vidA/v1 b",B="x.png",C=/library/vidA/v1/x` + "\n" + `#EXT-X-DATERANGE:ID="/library/vidA/v1/x",X-AD-URL="/library/vidA/v1/x"`, want: `#EXT-X-ACME:LOGO="/library/vidA/v1/x.png?a b",Name="/library/vidA/v1 b",B="x.png",C=/library/vidA/v1/x` + "\n" + `#EXT-X-DATERANGE:ID="/library/vidA/v1/x",X-AD-URL="../x"`},

	{name: "M3 query parameter after the path", in: "#EXT-X-DEFINE:QUERYPARAM=\"t\"\nseg.ts?{$t}", query: "t=//evil.example/"},
	{name: "M3 harmless query parameter in the path", in: "#EXT-X-DEFINE:QUERYPARAM=\"t\"\n{$t}/seg.ts", query: "t=hd"},
	{name: "M3 harmless query parameter in a path to rewrite", in: "#EXT-X-DEFINE:QUERYPARAM=\"t\"\n/library/vidA/v1/{$t}/seg.ts?{$t}", query: "a=b&t=h%64", want: "#EXT-X-DEFINE:QUERYPARAM=\"t\"\n../hd/seg.ts?{$t}"},
	{name: "M3 query parameter that names a host", in: "#EXT-X-DEFINE:QUERYPARAM=\"t\"\n{$t}/seg.ts", query: "t=//evil.example", want: refused},
	{name: "M3 query parameter that climbs", in: "#EXT-X-DEFINE:QUERYPARAM=\"t\"\n{$t}/seg.ts", query: "t=..", want: refused},
	{name: "M3 query parameter that climbs, encoded", in: "#EXT-X-DEFINE:QUERYPARAM=\"t\"\n{$t}/seg.ts", query: "t=%2e%2E", want: refused},
	{name: "M3 query parameter that is doubly encoded", in: "#EXT-X-DEFINE:QUERYPARAM=\"t\"\n{$t}/seg.ts", query: "t=%252e", want: refused},
	{name: "M3 query parameter that completes dots", in: "#EXT-X-DEFINE:QUERYPARAM=\"t\"\n.{$t}/seg.ts", query: "t=.", want: refused},
	{name: "M3 query parameter that completes a scheme", in: "#EXT-X-DEFINE:QUERYPARAM=\"t\"\n{$t}://x/seg.ts", query: "t=https", want: ""},
	{name: "M3 query parameter that is empty, and leaves a path from the root", in: "#EXT-X-DEFINE:QUERYPARAM=\"t\"\n{$t}/seg.ts", query: "t=", want: refused},
	{name: "M3 query parameter that is missing", in: "#EXT-X-DEFINE:QUERYPARAM=\"t\"\n{$t}/seg.ts", query: "x=1", want: refused},
	{name: "M3 query parameter that is repeated", in: "#EXT-X-DEFINE:QUERYPARAM=\"t\"\n{$t}/seg.ts", query: "t=a&t=b", want: refused},
	{name: "M3 query parameter with a line break", in: "#EXT-X-DEFINE:QUERYPARAM=\"t\"\n{$t}/seg.ts", query: "t=a%0A/library/vidA/v1/", want: refused},
	{name: "M3 query parameter with a quote", in: "#EXT-X-DEFINE:QUERYPARAM=\"t\"\n#EXT-X-MAP:URI=\"/library/vidA/v1/{$t}\"", query: "t=%22", want: refused},
	{name: "M3 query parameter that is malformed", in: "#EXT-X-DEFINE:QUERYPARAM=\"t\"\n{$t}/seg.ts", query: "t=%zz", want: refused},
	{name: "M3 query parameter that no URI uses", in: "#EXT-X-DEFINE:QUERYPARAM=\"t\"\nseg.ts", query: "t=//evil.example/"},
	{name: "M3 variable of the origin, its own host", in: "#EXT-X-DEFINE:NAME=\"b\",VALUE=\"https://origin.example/library/vidA/v1\"\n{$b}/x", want: "#EXT-X-DEFINE:NAME=\"b\",VALUE=\"https://origin.example/library/vidA/v1\"\n../x"},
	{name: "M3 variable of the origin, with a query", in: "#EXT-X-DEFINE:NAME=\"b\",VALUE=\"/library/vidA/v1/x?y\"\n{$b}&z?{$b}#f", want: "#EXT-X-DEFINE:NAME=\"b\",VALUE=\"/library/vidA/v1/x?y\"\n../x?y&z?{$b}#f"},
	{name: "M3 variable of the origin, another host", in: "#EXT-X-DEFINE:NAME=\"b\",VALUE=\"https://cdn.example\"\n{$b}/x"},
	{name: "M3 variable of the origin, downwards", in: "#EXT-X-DEFINE:NAME=\"b\",VALUE=\"../video/hd\"\n{$b}/x"},
	{name: "M3 variable of the origin that climbs out and in", in: "#EXT-X-DEFINE:NAME=\"b\",VALUE=\"../..\"\n{$b}/v1/x", want: "#EXT-X-DEFINE:NAME=\"b\",VALUE=\"../..\"\n../x"},
	{name: "M3 variable of the origin, with white space", in: "#EXT-X-DEFINE:NAME=\"b\",VALUE=\" /library/vidA/v1/x \"\n{$b}\n{$b}?y", want: "#EXT-X-DEFINE:NAME=\"b\",VALUE=\" /library/vidA/v1/x \"\n../x\n../x ?y"},
	{name: "M3 values that make another variable in the query", in: "#EXT-X-DEFINE:NAME=\"a\",VALUE=\"?{\"\n/library/vidA/v1/{$a}$a}", want: refused},
	{name: "M3 variable that is imported", in: "#EXT-X-DEFINE:IMPORT=\"b\"\n{$b}/x", want: refused},
	{name: "M3 variable that is imported, in the query", in: "#EXT-X-DEFINE:IMPORT=\"b\"\n/library/vidA/v1/x?{$b}", want: "#EXT-X-DEFINE:IMPORT=\"b\"\n../x?{$b}"},
	{name: "M3 variable that is not defined", in: "{$b}/x", want: refused},
	{name: "M3 variable that is not defined yet", in: "{$b}/x\n#EXT-X-DEFINE:NAME=\"b\",VALUE=\"c\"", want: refused},
	{name: "M3 variable that is not defined, in an attribute", in: "#EXT-X-MAP:URI=\"{$b}\"", want: refused},
	{name: "M3 variable within a variable", in: "#EXT-X-DEFINE:NAME=\"a\",VALUE=\"x\"\n#EXT-X-DEFINE:NAME=\"b\",VALUE=\"{$a}\"\n{$b}/x", want: refused},
	{name: "M3 values that make another variable", in: "#EXT-X-DEFINE:NAME=\"a\",VALUE=\"{\"\n/library/vidA/v1/{$a}$a}", want: refused},
	{name: "M3 text that is not a variable", in: "{$}/{$a b}/{$/{x}/x{$"},
	{name: "M3 defined twice", in: "#EXT-X-DEFINE:NAME=\"a\",VALUE=\"x\"\n#EXT-X-DEFINE:QUERYPARAM=\"a\"", want: refused},
	{name: "M3 definition of nothing", in: "#EXT-X-DEFINE:VALUE=\"x\"", want: refused},
	{name: "M3 definition without a value", in: "#EXT-X-DEFINE:NAME=\"x\"", want: refused},
	{name: "M3 definition of two kinds", in: "#EXT-X-DEFINE:NAME=\"x\",VALUE=\"y\",IMPORT=\"z\"", want: refused},
	{name: "M3 definition with two values", in: "#EXT-X-DEFINE:NAME=\"x\",VALUE=\"y\",VALUE=\"z\"", want: refused},
	{name: "M3 definition without quotes", in: "#EXT-X-DEFINE:NAME=x,VALUE=\"y\"", want: refused},
	{name: "M3 too many definitions", in: definitions(257), want: refused},
	{name: "M3 many definitions", in: definitions(256)},
}

func definitions(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString("#EXT-X-DEFINE:NAME=\"v" + strings.Repeat("v", i) + "\",VALUE=\"\"\n")
	}
	return b.String()
}

func TestHLS(t *testing.T) {
	t.Parallel()
	for _, tc := range hlsCases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			check(t, manifest.HLS, "#EXTM3U\n", tc.in, tc.query, tc.want, allowed)
		})
	}
}

// check compares the result of rewriting a manifest.
func check(t *testing.T, f manifest.Format, before, in, query, want string, features manifest.Features) {
	t.Helper()
	got, _, err := manifest.Rewrite(nil, []byte(before+in), f, here, query, features)
	if want == refused {
		if !errors.Is(err, manifest.ErrInvalid) || got != nil {
			t.Fatalf("Rewrite = %q, %v, want ErrInvalid", got, err)
		}
		// An error ends up in logs, and URIs may carry secrets.
		if strings.Contains(err.Error(), "library") || strings.Contains(err.Error(), "evil") {
			t.Errorf("error %q contains a URI", err)
		}
		return
	}
	if want == "" {
		want = in
	}
	if err != nil || string(got) != before+want {
		t.Errorf("Rewrite = %q, %v, want %q", got, err, before+want)
	}
}

// Interstitials have absolute URIs, which all players resolve alike.
func TestInterstitialsAreAbsolute(t *testing.T) {
	t.Parallel()
	const in = `#EXTM3U
#EXT-X-DATERANGE:ID="a",X-ASSET-URI="/library/vidA/v1/a.m3u8?b",X-URI="/library/vidA/v1/c"
#EXT-X-DATERANGE:ID="a",X-ASSET-LIST="../../v1/l.json",X-COM-URL="/library/vidA/v1/d"
#EXT-X-DATERANGE:ID="a",X-ASSET-URI="../a.m3u8"
#EXT-X-DATERANGE:ID="a",X-ASSET-URI="https://ads.example/a.m3u8"
`
	want := strings.NewReplacer(`X-ASSET-URI="/library/vidA/v1/`, `X-ASSET-URI="`+assetsHere.Base, `X-ASSET-LIST="../../v1/`, `X-ASSET-LIST="`+assetsHere.Base, "/library/vidA/v1/", "../").Replace(in)
	if got, _, err := manifest.Rewrite(nil, []byte(in), manifest.HLS, assetsHere, "", 0); err != nil || string(got) != want {
		t.Errorf("Rewrite = %s, %v, want %s", got, err, want)
	}
}

// F12: a host is the origin in both spellings that it has in DNS, in every format.
func TestInternationalHosts(t *testing.T) {
	t.Parallel()
	at := manifest.Location{Path: "/demo/m", Folder: "/demo/", Base: "./", Hosts: []string{"xn--bcher-kva.example"}}
	for _, host := range []string{"bücher.example", "BÜCHER.example:443", "xn--bcher-kva.example"} {
		uri := "https://" + host + "/demo/x"
		for in, want := range map[string]string{
			"#EXTM3U\n" + uri: "#EXTM3U\nx", "#EXTM3U\n#EXT-X-PREFETCH:" + uri: "#EXTM3U\n#EXT-X-PREFETCH:x", "#EXTM3U\n#EXT-X-MEDIA:,,URI=\"" + uri + "\"": "#EXTM3U\n#EXT-X-MEDIA:,,URI=\"x\"",
			"WEBVTT\n\n00:00.000 --> 00:01.000\n" + uri: "WEBVTT\n\n00:00.000 --> 00:01.000\nx", `{"ASSETS":[{"URI":"` + uri + `"}]}`: `{"ASSETS":[{"URI":"./x"}]}`,
		} {
			if got, _, err := manifest.Rewrite(nil, []byte(in), formatOf(in), at, "", 0); err != nil || string(got) != want {
				t.Errorf("Rewrite(%q) = %q, %v", in, got, err)
			}
		}
	}
}

// The documentation says of each place what becomes of a URI in it.
func TestHLSPlacesAreDocumented(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/manifests.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(page), "\n## HLS\n")
	table, _, _ = strings.Cut(table, "\n## ")
	const uri, moved = "/library/vidA/v1/x?a=b", "../x?a=b"
	places := 0
	for row := range strings.SplitSeq(table, "\n| ") {
		place, outcome, _ := strings.Cut(row, " | ")
		for _, found := range regexp.MustCompile("`(EXT-X-[A-Z-]+)(?::([A-Z-]+))?`").FindAllStringSubmatch(place, -1) {
			in := "#" + found[1] + ":" + uri
			switch {
			case found[1] == "EXT-X-DEFINE":
				in = `#EXT-X-DEFINE:NAME="a",VALUE="` + uri + `"`
			case found[2] != "":
				in = "#" + found[1] + ":" + found[2] + `="` + uri + `"`
			}
			want := in
			if strings.Contains(outcome, "rewritten if") || strings.HasPrefix(outcome, "rewritten") {
				want = strings.Replace(in, uri, moved, 1)
			}
			check(t, manifest.HLS, "#EXTM3U\n", in+"\n", "", want+"\n", allowed)
			if strings.HasPrefix(outcome, "taken out") {
				check(t, manifest.HLS, "#EXTM3U\n", in+"\nx", "", "x", 0)
			}
			places++
		}
	}
	if places < 20 {
		t.Errorf("the table has %d places", places)
	}
}

// A body that is not a playlist is refused.
func TestHLSFirstLine(t *testing.T) {
	t.Parallel()
	for body, ok := range map[string]bool{
		"#EXTM3U":                           true,
		"#EXTM3U\r\n":                       true,
		"\ufeff#EXTM3U\n":                   true,
		"#EXTM3U x-tvg-url=\"/epg\"\n":      true,
		"":                                  false,
		"\n#EXTM3U\n":                       false,
		" #EXTM3U\n":                        false,
		"#EXTM3U8\n":                        false,
		"#extm3u\n":                         false,
		"\ufeff\ufeff#EXTM3U\n":             false,
		"<!doctype html>":                   false,
		"\xff\xfe#\x00E\x00X\x00T\x00M\x00": false,
	} {
		if _, _, err := manifest.Rewrite(nil, []byte(body), manifest.HLS, here, "", allowed); (err == nil) != ok {
			t.Errorf("Rewrite(%q): %v", body, err)
		}
	}
}
