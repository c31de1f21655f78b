package manifest_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/signed-playback/caddy-signed-playback/manifest"
)

// uriForms are ways of writing a segment's URI.
var uriForms = []struct{ name, prefix string }{
	{"relative", "../video/"},
	{"rooted", "/library/vidA/v1/video/"},
	{"absolute", "https://origin.example/library/vidA/v1/video/"},
	{"climbing", "../../../../../library/vidA/v1/video/"},
	{"foreign", "https://cdn.example/library/vidA/v1/video/"},
}

func BenchmarkRewriteHLS(b *testing.B) {
	for _, form := range uriForms {
		var body bytes.Buffer
		body.WriteString("#EXTM3U\n#EXT-X-VERSION:9\n#EXT-X-TARGETDURATION:6\n")
		for i := range 5000 {
			fmt.Fprintf(&body, "#EXTINF:6.00600,\n%sseg_%d.mp4\n", form.prefix, i)
			if i%10 == 0 {
				fmt.Fprintf(&body, "#EXT-X-PART:DURATION=0.33334,URI=\"%spart_%d.mp4\",INDEPENDENT=YES\n", form.prefix, i)
			}
		}
		b.Run(form.name, func(b *testing.B) { benchmark(b, body.Bytes(), manifest.HLS) })
	}
}

func BenchmarkRewriteDASH(b *testing.B) {
	for _, form := range uriForms {
		var body bytes.Buffer
		body.WriteString("<MPD><Period><AdaptationSet><SegmentList>\n")
		for i := range 5000 {
			fmt.Fprintf(&body, "  <SegmentURL media=\"%sseg_%d.mp4?a=1&amp;b=2\"/>\n", form.prefix, i)
		}
		body.WriteString("</SegmentList></AdaptationSet></Period></MPD>")
		b.Run("list/"+form.name, func(b *testing.B) { benchmark(b, body.Bytes(), manifest.DASH) })
	}
	timeline := "<MPD><Period><AdaptationSet><SegmentTemplate media=\"/library/vidA/v1/$Time$.m4s\"><SegmentTimeline>\n" +
		strings.Repeat("  <S t=\"123456789\" d=\"96000\" r=\"3\"/>\n", 5000) +
		"</SegmentTimeline></SegmentTemplate></AdaptationSet></Period></MPD>"
	b.Run("timeline", func(b *testing.B) { benchmark(b, []byte(timeline), manifest.DASH) })
	bases := "<MPD><BaseURL>/library/vidA/v1/</BaseURL><Period><AdaptationSet>\n" +
		strings.Repeat("  <Representation><BaseURL>video/1080.mp4</BaseURL></Representation>\n", 5000) +
		"</AdaptationSet></Period></MPD>"
	b.Run("bases", func(b *testing.B) { benchmark(b, []byte(bases), manifest.DASH) })
}

func benchmark(b *testing.B, body []byte, f manifest.Format) {
	b.Helper()
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := manifest.Rewrite(nil, body, f, here, "", allowed); err != nil {
			b.Fatal(err)
		}
	}
}
