package integration

import (
	"fmt"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// fieldOrigin is an origin of the example clip and of files that packagers and advertisers
// make, with the types that some servers give them.
type fieldOrigin struct {
	*origin
	files map[string]fieldFile // by their path in the video's folder
}

type fieldFile struct{ contentType, body string }

// clipSegments are the names of the clip's segments in MPEG-TS.
func clipSegments(t testing.TB) []string {
	t.Helper()
	names, err := filepath.Glob("../examples/media/demo/ts/*.ts")
	if err != nil || len(names) != clipSeconds/2 {
		t.Fatalf("the example clip has the segments %q, %v", names, err)
	}
	return names
}

func startFieldOrigin(t testing.TB) *fieldOrigin {
	t.Helper()
	o := &fieldOrigin{files: make(map[string]fieldFile)}
	o.origin = startOrigin(t, o)
	host := "http://" + o.invalidHost()

	var all []byte
	ranges := "#EXTM3U\n#EXT-X-VERSION:4\n#EXT-X-TARGETDURATION:2\n"
	typed := ranges
	for _, file := range clipSegments(t) {
		segment, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name := path.Base(file)
		ranges += fmt.Sprintf("#EXT-X-BYTERANGE:%d@%d\n#EXTINF:2,\n/demo/FILE\n", len(segment), len(all))
		typed += "#EXTINF:2,\n/demo/typed/" + name + "\n"
		o.files["typed/"+name] = fieldFile{"application/x-mpegURL", string(segment)}
		all = append(all, segment...)
	}
	for _, name := range unknownNames {
		o.files[name] = fieldFile{"application/octet-stream", string(all)}
		o.files["of/"+name+".m3u8"] = fieldFile{body: strings.ReplaceAll(ranges, "FILE", name) + "#EXT-X-ENDLIST\n"}
	}
	o.files["typed.m3u8"] = fieldFile{body: typed + "#EXT-X-ENDLIST\n"}
	o.files["lists.m3u8"] = fieldFile{body: "#EXTM3U\n#EXT-X-SESSION-DATA:DATA-ID=\"a\",VALUE=\"{\"b\":1}\"\n" +
		"#EXT-X-STREAM-INF:BANDWIDTH=100000,NAME=\"\"a,b\"\",,FRAME-RATE\n" + host + "/demo/interstitials.m3u8\n"}
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Format(time.RFC3339)
	o.files["interstitials.m3u8"] = fieldFile{body: "#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-TARGETDURATION:2\n" +
		"#EXT-X-DATERANGE:ID=\"ad\",CLASS=\"com.apple.hls.interstitial\",START-DATE=\"" + start + "\",DURATION=2,X-RESUME-OFFSET=0,X-ASSET-LIST=\"" + host + "/demo/ads/list.php\"\n" +
		"#EXT-X-PROGRAM-DATE-TIME:" + start + "\n#EXTINF:2,\n/demo/ts/001.ts\n#EXTINF:2,\n" + host + "/demo/ts/002.ts\n#EXT-X-PREFETCH:/demo/ts/003.ts\n#EXT-X-ENDLIST\n"}
	o.files["asset-uri.m3u8"] = fieldFile{body: strings.Replace(o.files["interstitials.m3u8"].body, "X-ASSET-LIST=\""+host+"/demo/ads/list.php", "X-ASSET-URI=\"/demo/ads/ad.m3u8", 1)}
	o.files["asset.m3u8"] = fieldFile{body: "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=100000\nasset-uri.m3u8\n"}
	o.files["ads/list.php"] = fieldFile{"text/html", `{"ASSETS":[{"URI":"` + host + `\/demo\/ads\/ad.m3u8","DURATION":2}]}`}
	o.files["ads/ad.m3u8"] = fieldFile{body: "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n/demo/ts/006.ts\n#EXT-X-ENDLIST\n"}
	o.files["ads/storyboard"] = fieldFile{"text/vtt", "WEBVTT\n\n00:00.000 --> 00:02.000\n" + host + "/demo/thumbnails/thumbnail.jpg#xywh=0,0,80,45\n"}
	return o
}

// unknownNames are names of media that do not tell what they are.
var unknownNames = []string{"main.ismv", "all.dash", "all.bif", "all.mpg", "all", "all.xml", "all.php"}

// ServeHTTP implements http.Handler.
func (o *fieldOrigin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/demo/")
	file, ok := o.files[name]
	if !ok {
		http.ServeFile(w, r, filepath.Join("../examples/media/demo", filepath.FromSlash(name)))
		return
	}
	if file.contentType != "" {
		w.Header().Set("Content-Type", file.contentType)
	}
	http.ServeContent(w, r, name, time.Time{}, strings.NewReader(file.body))
}

// F2: a range of a file with any name is a range, and what ffmpeg and hls.js play by it.
// F3: segments play under the type of a playlist.
func TestMediaOfTheField(t *testing.T) {
	t.Parallel()
	o := startFieldOrigin(t)
	g := start(t, o.origin, config{gate: "manifest_hosts " + o.invalidHost()})
	good := "/" + mint(t, "demo", nil) + "/"
	for _, name := range unknownNames {
		body := o.files[name].body
		for value, want := range map[string]string{"bytes=10-19": body[10:20], "bytes=0-1": body[:2], "bytes=-5": body[len(body)-5:], "bytes=0-": body} {
			if res := g.get(t, good+name, "Range: "+value); res.StatusCode != http.StatusPartialContent || string(res.body) != want {
				t.Errorf("%s of %s: %d with %d bytes, want 206 with %d", value, name, res.StatusCode, len(res.body), len(want))
			}
		}
	}
	// The attack: a part of a manifest, which nothing has rewritten.
	o.files["hidden"] = fieldFile{"video/mp4", "<MPD><BaseURL>/demo/x/</BaseURL></MPD>"}
	for _, value := range []string{"bytes=1-", "bytes=0-3", "bytes=-30", "bytes=1-2,3-"} {
		if res := g.get(t, good+"hidden", "Range: "+value); res.StatusCode != http.StatusOK || string(res.body) != "<MPD><BaseURL>x/</BaseURL></MPD>" {
			t.Errorf("%s of a manifest: %d %s", value, res.StatusCode, res.body)
		}
	}
	page := startPlayersPage(t)
	for _, playlist := range []string{"of/all.mpg.m3u8", "typed.m3u8"} { // ffmpeg refuses other names
		wantDecoded(t, g.url(good+playlist), clipSeconds)
	}
	for _, playlist := range []string{"of/main.ismv.m3u8", "of/all.m3u8", "typed.m3u8"} {
		o.take()
		p := openTab(t)
		p.open(t, page)
		if got := play(t, p, "hls.js", g.url(good+playlist), 8, 0, "{}"); got.End != "ended" || len(got.Errors) > 0 {
			t.Errorf("hls.js and %s: %+v", playlist, got)
		}
		p.wantRequestsIn(t, g, good, page, slices.Compact(o.uris()))
	}
}

// F14, F10, F7: hls.js plays an advertisement from an asset list with absolute URIs, from a playlist
// with mistakes, and everything that it asks for is below the token.
func TestInterstitials(t *testing.T) {
	t.Parallel()
	o := startFieldOrigin(t)
	g := start(t, o.origin, config{gate: "manifest_hosts " + o.invalidHost()})
	page := startPlayersPage(t)
	good := "/" + mint(t, "demo", nil) + "/"
	for _, playlist := range []string{"lists.m3u8", "asset.m3u8"} {
		o.take()
		p := openTab(t)
		p.open(t, page)
		got := play(t, p, "hls.js", g.url(good+playlist), 1, 1, "{}")
		uris := o.uris()
		if got.End != "played" || len(got.Errors) > 0 || !slices.Contains(uris, "/demo/ts/006.ts") {
			t.Errorf("%s did not play the advertisement: %+v, the origin was asked for %q", playlist, got, uris)
		}
		p.wantRequestsIn(t, g, good, page, nil) // it goes on to ask
	}

	for name, want := range map[string]string{
		"ads/list.php":       `{"ASSETS":[{"URI":"` + g.url(good+"ads/ad.m3u8") + `","DURATION":2}]}`,
		"ads/storyboard":     "WEBVTT\n\n00:00.000 --> 00:02.000\n../thumbnails/thumbnail.jpg#xywh=0,0,80,45\n",
		"interstitials.m3u8": "#EXT-X-PREFETCH:ts/003.ts\n",
	} {
		if res := g.get(t, good+name); res.StatusCode != http.StatusOK || !strings.Contains(string(res.body), want) {
			t.Errorf("%s: %d %s, want %s", name, res.StatusCode, res.body, want)
		}
	}
}
