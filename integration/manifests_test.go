package integration

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// rootedPlaylist has URIs that lead out of the viewer's own path unless they are
// rewritten, and a feature that no viewer gets. rewrittenPlaylist is what a viewer
// gets.
const (
	rootedPlaylist    = "#EXTM3U\n#EXT-X-CONTENT-STEERING:SERVER-URI=\"https://evil.test/\"\n#EXTINF:2,\n/vidA/video/001.ts\n#EXTINF:2,\nhttp://origin.invalid/vidA/video/002.ts\n"
	rewrittenPlaylist = "#EXTM3U\n#EXTINF:2,\nvideo/001.ts\n#EXTINF:2,\nvideo/002.ts\n"
)

// servePlaylist serves the playlist with everything that caches and players use.
func servePlaylist(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/vnd.apple.mpegurl")
	w.Header().Set("ETag", `"origin"`)
	http.ServeContent(w, r, "", time.Now().Add(-time.Hour), strings.NewReader(rootedPlaylist))
}

// What players and caches ask of a manifest is about the rewritten one, in every
// version of HTTP. TestManifestRequests of the root package has all that they ask.
func TestManifestsOfEachProtocol(t *testing.T) {
	t.Parallel()
	g := startTLS(t, startOrigin(t, http.HandlerFunc(servePlaylist)), config{gate: "manifest_hosts origin.invalid"})
	for _, protocol := range protocols {
		c, _ := protocol.connect(t, g)
		got := g.ask(t, c, http.MethodGet, "/"+mint(t, "vidA", nil)+"/video.m3u8", "Range: bytes=0-1", `If-None-Match: "origin"`)
		if got.StatusCode != http.StatusOK || got.ContentLength != int64(len(rewrittenPlaylist)) || string(got.body) != rewrittenPlaylist || got.Header.Get("ETag") != "" {
			t.Errorf("%s: %d, length %d, %v: %s", protocol.name, got.StatusCode, got.ContentLength, got.Header, got.body)
		}
	}
}

// An encode directive compresses the rewritten manifest.
func TestCompressedManifest(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, http.HandlerFunc(servePlaylist))
	g := start(t, o, config{gate: "manifest_hosts origin.invalid", site: `encode gzip {
		minimum_length 1
		match header Content-Type application/vnd.apple.mpegurl*
	}
	reverse_proxy ` + o.addr()})
	got := g.get(t, "/"+mint(t, "vidA", nil)+"/video.m3u8", "Accept-Encoding: gzip") // named here, so that the client does not decompress it
	if got.Header.Get("Content-Encoding") != "gzip" || !strings.Contains(strings.Join(got.Header.Values("Vary"), ","), "Accept-Encoding") {
		t.Fatalf("%d %v", got.StatusCode, got.Header)
	}
	reader := must(gzip.NewReader(bytes.NewReader(got.body)))(t)
	if body, err := io.ReadAll(reader); err != nil || string(body) != rewrittenPlaylist {
		t.Errorf("the compressed manifest: %q, %v", body, err)
	}
	if asked := o.take(); len(asked) != 1 || asked[0].header.Get("Accept-Encoding") != "identity" {
		t.Errorf("the origin was asked %v", asked)
	}
}

// A redirect within the video's folder leads to the same place below the client's
// own path. A redirect to anywhere else is refused.
func TestRedirects(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if to := r.URL.Query().Get("to"); to != "" {
			w.Header().Set("Location", to)
			w.WriteHeader(http.StatusFound)
			return
		}
		_, _ = io.WriteString(w, "#EXTM3U\n#"+r.URL.Path+"\n")
	}))
	g := start(t, o, config{gate: "manifest_hosts origin.test:8000"})
	good := "/" + mint(t, "vidA", nil) + "/"
	for _, tc := range []struct{ from, to, end string }{
		{"manifest/video.m3u8", "/vidA/b/c.m3u8", "b/c.m3u8"},
		{"video/001.ts", "http://origin.test:8000/vidA/b/c.m3u8", "b/c.m3u8"},
		{"video/001.ts", "http://" + g.addr + "/vidA/c.m3u8", "c.m3u8"}, // by the name that the client asked for
		{"manifest/video.m3u8", `\\evil.test/vidA/c.m3u8`, ""},
		{"manifest/video.m3u8", "/vidA/%2e%2e/vidB/c.m3u8", ""},
	} {
		got := g.get(t, good+tc.from+"?to="+url.QueryEscape(tc.to))
		if tc.end == "" {
			o.take()
			if want := refusedFor("manifest_invalid"); got.verdict() != want || got.Header.Get("Location") != "" {
				t.Errorf("%s to %s: %v to %q, want %v", tc.from, tc.to, got.verdict(), got.Header.Get("Location"), want)
			}
			continue
		}
		next, err := got.Location()
		if err != nil || got.StatusCode != http.StatusFound || next.String() != g.url(good+tc.end) {
			t.Errorf("%s to %s: %d to %v, want %s: %v", tc.from, tc.to, got.StatusCode, next, g.url(good+tc.end), err)
			continue
		}
		o.take()
		o.wantPassed(t, g.get(t, next.RequestURI()), videoFolder+tc.end)
	}
}

// steering is what a steering server answers: play a copy of the pathway A on
// evil.test. The URLs of the copy have the path of the original, with the token.
const steering = `{"VERSION":1,"TTL":1,"PATHWAY-PRIORITY":["E","A"],"PATHWAY-CLONES":[{"BASE-ID":"A","ID":"E","URI-REPLACEMENT":{"HOST":"evil.test"}}]}`

const (
	pathwayA = `<BaseURL serviceLocation="A">./</BaseURL>`
	metrics  = `<Metrics metrics="HttpList(10)"><Reporting schemeIdUri="urn:dvb:dash:reporting:2014" value="1" dvb:reportingUrl="EVIL/report" dvb:probability="1000"/></Metrics>`
	patch    = `<Patch mpdId="x" originalPublishTime="2026-01-01T00:00:00Z" publishTime="2026-01-01T00:00:01Z"><replace sel="/MPD/@publishTime">2026-01-01T00:00:01Z</replace>` +
		`<add sel="/MPD" pos="prepend">` + metrics + `</add></Patch>`
)

// hostileManifests replace parts of the manifests of the clip, by patterns. EVIL is
// the address of evil.test. What is not refused still plays.
var hostileManifests = []struct {
	name, how, suffix string
	replaced          []string
}{
	{"steering by data", "hls.js", "video.m3u8", hlsSteering("#", "data:application/json,"+url.PathEscape(steering))},
	{"steering in the folder, in a comment", "hls.js", "video.m3u8", hlsSteering("# x #", "steering.json")},
	{"steering elsewhere", "shaka", "video.m3u8", hlsSteering("#", "EVIL/steering.json")},
	{"tag after a slash", "shaka", "video.m3u8", hlsSteering("/", "steering.json")},
	{"steering of an MPD", "shaka", "video.mpd", []string{"<Period ", pathwayA + `<ContentSteering defaultServiceLocation="A">steering.json</ContentSteering>$0`}},
	{"steering of an MPD", "dash.js", "video.mpd", []string{"<Period ", pathwayA + `<x:ContentSteering xmlns:x="urn:x" defaultServiceLocation="A" queryBeforeStart="true">EVIL/steering.json</x:ContentSteering>$0`}},
	{"metrics", "dash.js", "video.mpd", []string{"<Period ", metrics + "$0"}},
	{"metrics under a name that tells nothing", "dash.js", "stream.php", []string{"<MPD", "<!-- " + strings.Repeat("x ", 3000) + "-->$0", "<Period ", metrics + "$0"}},
	{"metrics by another name", "dash.js", "video.mpd", []string{"<Period ", strings.NewReplacer("<Metrics", `<SupplementalProperty nodeName="Metrics"`, "/Metrics", "/SupplementalProperty").Replace(metrics) + "$0"}},
	{"metrics in a comment", "dash.js", "video.mpd", []string{"<Period ", "<!-->" + metrics + "-->$0"}},
	{"metrics in an instruction", "dash.js", "video.mpd", []string{"<Period ", "<?x >" + metrics + "?>$0"}},
	{"metrics by a patch", "dash.js", "video.mpd", []string{
		`type="static"`, `type="dynamic" id="x" publishTime="2026-01-01T00:00:00Z" minimumUpdatePeriod="PT1S" availabilityStartTime="START"`,
		"<Period ", `<PatchLocation>patch.xml</PatchLocation><UTCTiming schemeIdUri="urn:mpeg:dash:utc:direct:2014" value="NOW"/>$0`,
	}},
	{"client data", "dash.js", "video.mpd", []string{
		`<ServiceDescription id="0">`, `$0<ClientDataReporting><CMCDParameters schemeIdUri="urn:mpeg:dash:cta-5004:2023" version="1" keys="nor" includeInRequests="segment" mode="query"/></ClientDataReporting>`,
		`(?s)<SegmentTemplate timescale="48000".*?</SegmentTemplate>`, `<SegmentList timescale="48000" duration="96000"><Initialization sourceURL="../audio/init.mp4"/>` +
			`<SegmentURL media="EVIL/x/audio/001.m4s"/><SegmentURL media="../audio/002.m4s"/><SegmentURL media="EVIL/x/audio/003.m4s"/><SegmentURL media="../audio/004.m4s"/></SegmentList>`,
	}},
}

func hlsSteering(before, server string) []string {
	return []string{"#EXT-X-INDEPENDENT-SEGMENTS", before + `EXT-X-CONTENT-STEERING:SERVER-URI="` + server + `",PATHWAY-ID="A"`, "-STREAM-INF:", `${0}PATHWAY-ID="A",`}
}

// hostileMedia serves the clip below /hostile0/, /hostile1/ and so on, each with one
// of the hostile manifests.
func hostileMedia(evil string) http.Handler {
	media := exampleMedia()
	started := time.Now().Add(-clipSeconds * time.Second)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*")
		folder, file, _ := strings.Cut(r.URL.Path[1:], "/")
		name := path.Base(file)
		text := map[string]string{"steering.json": steering, "patch.xml": patch}[name]
		if number, err := strconv.Atoi(strings.TrimPrefix(folder, "hostile")); err == nil && name == hostileManifests[number].suffix {
			data, _ := os.ReadFile("../examples/media/demo/" + strings.Replace(file, "stream.php", "video.mpd", 1))
			text = string(data)
			for pair := range slices.Chunk(hostileManifests[number].replaced, 2) {
				text = regexp.MustCompile(pair[0]).ReplaceAllString(text, pair[1])
			}
		}
		if text == "" {
			r.URL.Path = "/demo/" + file
			media.ServeHTTP(w, r)
			return
		}
		_, _ = io.WriteString(w, strings.NewReplacer("EVIL", evil, "START", started.UTC().Format(time.RFC3339), "NOW", time.Now().UTC().Format(time.RFC3339)).Replace(text))
	})
}

// A hostile manifest has no player at its defaults give the viewer's URL to another
// host, or ask a steering server. Without the gate, each of them does.
func TestHostileManifests(t *testing.T) {
	t.Parallel()
	evil := startOrigin(t, hostileMedia(""))
	evilURL := strings.Replace(evil.server.URL, "127.0.0.1", "evil.test", 1)
	o := startOrigin(t, hostileMedia(evilURL))
	g := start(t, o, config{})
	page := startPlayersPage(t)
	header, _, _ := strings.Cut(mint(t, "x", nil), ".") // of every token
	t.Cleanup(func() {
		if got := fmt.Sprint(evil.take()); strings.Contains(got, header) {
			t.Errorf("evil.test got a token: %s", got)
		}
	})
	for i, m := range hostileManifests {
		t.Run(m.how+", "+m.name, func(t *testing.T) {
			t.Parallel()
			video := fmt.Sprint("hostile", i)
			for own, secret := range map[string]string{o.server.URL + "/": video, g.url("/"): mint(t, video, nil)} {
				p := openPage(t, page)
				got := play(t, p, m.how, own+secret+"/manifest/"+m.suffix, 1, 3, "{}")
				leaked := func() bool {
					return slices.ContainsFunc(p.asked(), func(address string) bool {
						return strings.Contains(address, secret) && !strings.HasPrefix(address, own) || strings.Contains(address, "/steering.json")
					})
				}
				if secret == video {
					eventually(t, "an attack that works without the gate", leaked)
					continue
				}
				if leaked() {
					t.Errorf("the player asked for %q", p.asked())
				}
				if status := g.get(t, "/"+secret+"/manifest/"+m.suffix).StatusCode; (got.End == "played") != (status == http.StatusOK) {
					t.Errorf("%d, and playing ended with %+v", status, got)
				}
			}
		})
	}
}

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
		segment := must(os.ReadFile(file))(t)
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
		p := openPage(t, page)
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
		p := openPage(t, page)
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
