package integration

import (
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// inheritedMPDs are MPDs of the clip whose Representations inherit URIs and resolve them at
// their own BaseURLs. ROOT is the folder of the video on the origin.
var inheritedMPDs = []struct{ name, video string }{
	{"one spelling", `<SegmentTemplate initialization="ROOT/video/$RepresentationID$/init.mp4" media="ROOT/video/$RepresentationID$/$Number%03d$.m4s"/>` +
		`<Representation id="180p" bandwidth="150766"><BaseURL>low/</BaseURL></Representation><Representation id="90p" bandwidth="50697"><BaseURL>other/</BaseURL></Representation>`},
	{"moved down", `<SegmentTemplate initialization="ROOT/video/$RepresentationID$/init.mp4" media="ROOT/video/$RepresentationID$/$Number%03d$.m4s"/>` +
		`<Representation id="180p" bandwidth="150766"><BaseURL>a/b/c/</BaseURL></Representation><Representation id="90p" bandwidth="50697"/>`},
	{"moved into elements", `<SegmentTemplate initialization="ROOT/video/90p/init.mp4" media="ROOT/video/90p/$Number%03d$.m4s"/>` +
		`<Representation id="180p" bandwidth="150766"><BaseURL>ROOT/video/</BaseURL><SegmentTemplate media="180p/$Number%03d$.m4s" initialization="180p/init.mp4"/></Representation>` +
		`<Representation id="90p" bandwidth="50697"><SegmentTemplate startNumber="1"/></Representation><Representation id="same" bandwidth="50000"><BaseURL>a/b/</BaseURL></Representation>`},
	{"lists moved down", `<SegmentList timescale="12800" duration="25600"><Initialization sourceURL="ROOT/video/180p/init.mp4"/>SEGMENTS</SegmentList>` +
		`<Representation id="180p" bandwidth="150766"><BaseURL>a/</BaseURL></Representation><Representation id="90p" bandwidth="50697"/>`},
	{"BaseURL of the root", `<BaseURL>/</BaseURL><SegmentTemplate initialization="init.mp4" media="$Number%03d$.m4s"/>` +
		`<Representation id="180p" bandwidth="150766"><BaseURL>NAME/video/180p/</BaseURL></Representation><Representation id="90p" bandwidth="50697"><BaseURL>NAME/video/90p/</BaseURL></Representation>`},
	{"folders below", `<SegmentTemplate initialization="init.mp4" media="$Number%03d$.m4s"/>` +
		`<Representation id="180p" bandwidth="150766"><BaseURL>HOST/NAME/video/180p/</BaseURL></Representation><Representation id="90p" bandwidth="50697"><BaseURL>../video/90p/</BaseURL></Representation>`},
	{"moved down, remote", `<SegmentTemplate initialization="ROOT/video/$RepresentationID$/init.mp4" media="ROOT/video/$RepresentationID$/$Number%03d$.m4s"/>` +
		`<Representation id="180p" bandwidth="150766"><BaseURL>a/b/c/</BaseURL></Representation><Representation id="90p" bandwidth="50697"/>`},
	{"BaseURL of the root and a Location elsewhere", `<BaseURL>/NAME/</BaseURL><SegmentTemplate initialization="/NAME/video/90p/init.mp4" media="video/90p/$Number%03d$.m4s"/>` +
		`<Representation id="90p" bandwidth="50697"/>LOCATION`},
}

// serveInherited serves the clip below /inherited0/, /inherited1/ and so on, each with
// one of the MPDs.
func serveInherited(w http.ResponseWriter, r *http.Request) {
	name, file, _ := strings.Cut(r.URL.Path[1:], "/")
	if file != "manifest/video.mpd" && file != "manifest/remote.php" {
		r.URL.Path = "/demo/" + file
		exampleMedia().ServeHTTP(w, r)
		return
	}
	var number int
	_, _ = fmt.Sscanf(name, "inherited%d", &number)
	const timing = ` timescale="12800" duration="25600" startNumber="1" initialization`
	video, segments := inheritedMPDs[number].video, ""
	for i := range 6 {
		segments += fmt.Sprintf(`<SegmentURL media="ROOT/video/180p/%03d.m4s"/>`, i+1)
	}
	video = strings.NewReplacer("SEGMENTS", segments, "<SegmentTemplate initialization", "<SegmentTemplate"+timing).Replace(video)
	video = strings.ReplaceAll(video, "<Representation ", `<Representation mimeType="video/mp4" codecs="avc1.4d401e" `)
	period := `<Period id="0"><AdaptationSet contentType="video">` + video + `</AdaptationSet><AdaptationSet contentType="audio"><SegmentTemplate timescale="48000" duration="96000" initialization="ROOT/audio/init.mp4" media="ROOT/audio/$Number%03d$.m4s"/>` +
		`<Representation id="audio" mimeType="audio/mp4" codecs="mp4a.40.2" bandwidth="52140"><BaseURL>x/y/</BaseURL></Representation></AdaptationSet></Period>`
	mpd := `<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" xmlns:xlink="http://www.w3.org/1999/xlink" profiles="urn:mpeg:dash:profile:isoff-live:2011" type="static" mediaPresentationDuration="PT12S" minBufferTime="PT4S">PERIOD</MPD>`
	switch {
	case file == "manifest/remote.php":
		mpd = "<?xml version='1.0' encoding='us-ascii'?><!-- remote -->" + period
	case strings.HasSuffix(inheritedMPDs[number].name, "remote"):
		mpd = strings.Replace(mpd, "PERIOD", `<Period xlink:href="ROOT/manifest/remote.php" xlink:actuate="onLoad"/>`, 1)
	default:
		mpd = strings.Replace(mpd, "PERIOD", period, 1)
	}
	if strings.Contains(mpd, "LOCATION") { // of the MPD
		mpd = strings.Replace(strings.Replace(mpd, "LOCATION", "", 1), "<Period", "<Location>ROOT/video.mpd</Location><Period", 1)
	}
	_, _ = io.WriteString(w, strings.NewReplacer("ROOT", "/"+name, "NAME", name, "HOST", "http://origin.invalid").Replace(mpd))
}

// Representations inherit URIs and resolve them at their own base URLs. Players read the
// rewritten MPD as the standard says, and ask only for files of the video.
func TestInheritedURIs(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, http.HandlerFunc(serveInherited))
	g := start(t, o, config{gate: "manifest_hosts origin.invalid"})
	page := startPlayersPage(t)
	for i, mpd := range inheritedMPDs {
		players := []string{"dash.js", "shaka", "ffmpeg"}
		if strings.HasSuffix(mpd.name, "remote") {
			players = players[1:2] // dash.js has no relative remote elements, ffmpeg none
		}
		for _, how := range players {
			t.Run(mpd.name+", "+how, func(t *testing.T) {
				video := fmt.Sprint("inherited", i)
				space := "/" + mint(t, video, nil) + "/"
				address := g.url(space + "manifest/video.mpd")
				if how == "ffmpeg" {
					wantDecoded(t, address, clipSeconds)
				} else {
					p := openTab(t)
					p.open(t, page)
					got := play(t, p, how, address, 8, 0, "{}")
					if got.End != "ended" || math.Abs(got.Position-clipSeconds) > 0.5 || len(got.Errors) > 0 {
						t.Errorf("it did not play to the end: %+v\n%s", got, g.get(t, space+"manifest/video.mpd").body)
					}
					p.wantRequestsIn(t, g, space, page, nil)
				}
				if !slices.Contains(o.uris(), "/"+video+"/audio/006.m4s") {
					t.Errorf("the origin was asked for %v", o.urisBelow("/"+video+"/"))
				}
			})
		}
	}
}
