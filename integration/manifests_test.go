package integration

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// writtenClips calls test for every clip and every way in which an origin may
// write its manifest. The label makes the live streams of a test its own.
func writtenClips(t *testing.T, label string, test func(t *testing.T, c clip, way, folder string)) {
	for _, c := range clips {
		itsWays := ways
		if c.dash() {
			itsWays = append(slices.Clip(itsWays), basedWay)
		}
		for _, way := range itsWays {
			t.Run(c.name+", "+way, func(t *testing.T) { test(t, c, way, way+"/"+c.name+"."+label+"/") })
		}
	}
}

// Whatever an origin makes and however it writes its URIs: all of it is found
// under the viewer's own path, is what the origin has, and the origin is asked
// for just that.
func TestCrawl(t *testing.T) {
	m := startMediaOrigin(t, makeClips(t))
	g := start(t, m.origin, config{gate: m.gate()})
	good := mint(t, "vidA", nil)
	writtenClips(t, "crawl", func(t *testing.T, c clip, way, folder string) {
		m.take()
		if c.name == "ll" {
			m.stream(way, "ll.crawl").onDemand = true
		}
		crawler := newCrawler(t, g, m, good)
		crawler.crawl(folder + c.entry)
		if c.name == "ll" {
			crawler.wantLowLatency()
		}
		if diff := cmp.Diff(c.want(m), crawler.media(folder)); diff != "" {
			t.Errorf("what the manifests lead to (-want +got):\n%s", diff)
		}
		crawler.wantSeen()
	})
}

// want returns the files of a clip that its manifests lead to.
func (c clip) want(m *mediaOrigin) []string {
	var names []string
	_ = filepath.WalkDir(filepath.Join(m.dir, c.name), func(path string, entry os.DirEntry, err error) error {
		name, _ := filepath.Rel(filepath.Join(m.dir, c.name), path)
		if err == nil && !entry.IsDir() && !c.unused(name) {
			names = append(names, filepath.ToSlash(name))
		}
		return err
	})
	if c.name == "dynamic" {
		names = append(names, "time")
	}
	slices.Sort(names)
	return names
}

// unused reports whether a file of a clip is not media, or none that a crawl
// gets to.
func (c clip) unused(name string) bool {
	switch {
	case strings.HasSuffix(name, ".m3u8"), strings.HasSuffix(name, ".mpd"), name == "keys/info", name == "subtitles.vtt":
		return true
	case c.name == "template":
		// ffmpeg makes a segment of less than a frame after the end.
		return name == "chunk-stream2-00004.m4s"
	case c.name == "ll":
		// Parts that were gone from the playlist when the stream began.
		part, err := strconv.Atoi(strings.TrimSuffix(name[len(name)-len("000.m4s"):], ".m4s"))
		return err == nil && strings.Contains(name, "part") && part < partsAtStart-3*partsPerSegment
	}
	return false
}

// crawler follows every URI of every manifest that it finds.
type crawler struct {
	t            *testing.T
	g            *gateway
	m            *mediaOrigin
	token, space string
	queue        []string        // manifests
	done         map[string]bool // by path and range
	asked        []string        // targets, without the space
	skipped      int             // delta updates
	hinted       int             // parts that were asked for before they were there
	reports      int
}

func newCrawler(t *testing.T, g *gateway, m *mediaOrigin, viewer string) *crawler {
	return &crawler{t: t, g: g, m: m, token: viewer, space: "/" + viewer + "/", done: make(map[string]bool)}
}

// get asks for what lies below the viewer's own path.
func (c *crawler) get(target string, header ...string) *response {
	c.t.Helper()
	c.asked = append(c.asked, target)
	return c.g.get(c.t, c.space+target, header...)
}

// resolve resolves a reference as browsers do, and checks that it stays below
// the viewer's own path.
func (c *crawler) resolve(base, reference string) (target string, ok bool) {
	c.t.Helper()
	baseURL, err := url.Parse(c.g.url(c.space + base))
	if err != nil {
		c.t.Fatal(err)
	}
	resolved, err := baseURL.Parse(reference)
	if err != nil {
		c.t.Errorf("in %s: %v", base, err)
		return "", false
	}
	target, ok = strings.CutPrefix(resolved.String(), c.g.url(c.space))
	if !ok {
		c.t.Errorf("%q in %s leads to %s", reference, base, resolved.Redacted())
	}
	return target, ok
}

// crawl follows a manifest, and the manifests that it leads to one after the
// other, so that live ones advance side by side.
func (c *crawler) crawl(target string) {
	c.t.Helper()
	c.manifest(target)
	for len(c.queue) > 0 {
		target, c.queue = c.queue[0], c.queue[1:]
		c.load(target)
	}
}

func (c *crawler) manifest(target string) {
	if !c.done[target] {
		c.done[target] = true
		c.queue = append(c.queue, target)
	}
}

func (c *crawler) load(target string) {
	c.t.Helper()
	name, _, _ := strings.Cut(target, "?")
	res := c.get(target)
	if res.StatusCode != http.StatusOK {
		c.t.Errorf("%s: %d %s", target, res.StatusCode, res.reason())
		return
	}
	if bytes.Contains(res.body, []byte(c.token)) {
		c.t.Errorf("%s contains the token", target)
	}
	if strings.HasSuffix(name, ".mpd") {
		c.mpd(name, res.body)
	} else {
		c.playlist(name, string(res.body))
	}
}

var (
	lineOrAttribute = regexp.MustCompile(`(?m)^[^#\s].*$|URI="([^"]*)"`)
	byteRange       = regexp.MustCompile(`#EXT-X-BYTERANGE:(\d+)@(\d+)\s+$`)
	mediaSequence   = regexp.MustCompile(`#EXT-X-MEDIA-SEQUENCE:(\d+)`)
	skippedSegments = regexp.MustCompile(`#EXT-X-SKIP:SKIPPED-SEGMENTS=(\d+)`)
)

func (c *crawler) playlist(name, text string) {
	c.t.Helper()
	for _, at := range lineOrAttribute.FindAllStringSubmatchIndex(text, -1) {
		reference := text[at[0]:at[1]]
		if at[2] >= 0 {
			reference = text[at[2]:at[3]]
		}
		before := text[:at[0]]
		target, ok := c.resolve(name, reference)
		switch {
		case !ok:
		case strings.HasSuffix(target, ".m3u8"):
			if strings.HasSuffix(before, "#EXT-X-RENDITION-REPORT:") {
				c.reports++
			}
			c.manifest(target)
		default:
			if strings.HasSuffix(before, "#EXT-X-PRELOAD-HINT:TYPE=PART,") {
				c.hinted++
			}
			var bounds string
			if m := byteRange.FindStringSubmatch(before); m != nil {
				length, _ := strconv.Atoi(m[1])
				from, _ := strconv.Atoi(m[2])
				bounds = fmt.Sprintf("%d-%d", from, from+length-1)
			}
			c.file(target, bounds)
		}
	}
	sequence := mediaSequence.FindStringSubmatch(text)
	if sequence == nil || strings.Contains(text, "#EXT-X-ENDLIST") || strings.Contains(text, "#EXT-X-I-FRAMES-ONLY") {
		return
	}
	again := name
	if strings.Contains(text, "CAN-BLOCK-RELOAD=YES") {
		next, _ := strconv.Atoi(sequence[1])
		next += strings.Count(text, "#EXTINF")
		if m := skippedSegments.FindStringSubmatch(text); m != nil {
			c.skipped++
			skipped, _ := strconv.Atoi(m[1])
			next += skipped
		}
		again = fmt.Sprintf("%s?_HLS_msn=%d&_HLS_part=%d&_HLS_skip=YES", name, next, c.partsAfter(text))
	} else {
		delete(c.done, again)
	}
	c.manifest(again)
}

// partsAfter counts the parts of the segment that is not finished.
func (c *crawler) partsAfter(text string) int {
	return strings.Count(text[strings.LastIndex(text, "#EXTINF")+1:], "#EXT-X-PART:")
}

// file asks for media, and compares it with what the origin has.
func (c *crawler) file(target, bounds string) {
	c.t.Helper()
	if c.done[target+" "+bounds] {
		return
	}
	c.done[target+" "+bounds] = true
	var header []string
	status := http.StatusOK
	if bounds != "" {
		header, status = []string{"Range: bytes=" + bounds}, http.StatusPartialContent
	}
	res := c.get(target, header...)
	if res.StatusCode != status {
		c.t.Errorf("%s: %d %s, want %d", target, res.StatusCode, res.reason(), status)
		return
	}
	if strings.HasSuffix(target, "/time") {
		return
	}
	want := c.m.file(c.t, target)
	if from, to, ok := strings.Cut(bounds, "-"); ok {
		first, err1 := strconv.Atoi(from)
		last, err2 := strconv.Atoi(to)
		if err1 != nil || err2 != nil || last >= len(want) {
			c.t.Errorf("%s has %d bytes, and a manifest names %q", target, len(want), bounds)
			return
		}
		want = want[first : last+1]
	}
	if !bytes.Equal(res.body, want) {
		c.t.Errorf("%s has %d bytes, which differ from the origin's %d", target, len(res.body), len(want))
	}
}

// file returns what the origin has.
func (m *mediaOrigin) file(t testing.TB, target string) []byte {
	t.Helper()
	parts := strings.SplitN(target, "/", 3)
	clipName, _, _ := strings.Cut(parts[1], ".")
	data, err := os.ReadFile(filepath.Join(m.dir, clipName, filepath.FromSlash(parts[2])))
	if err != nil {
		t.Error(err)
	}
	return data
}

// media returns the files that were asked for, each once, without the manifests.
func (c *crawler) media(folder string) []string {
	var names []string
	for _, target := range c.asked {
		if name := strings.TrimPrefix(target, folder); !strings.Contains(name, ".m3u8") && !strings.Contains(name, ".mpd") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// wantSeen checks that the origin saw what the crawler has asked for, each at
// its place in the video's folder, and nothing of the token.
func (c *crawler) wantSeen() {
	c.t.Helper()
	var want, got []string
	for _, target := range c.asked {
		want = append(want, videoFolder+target)
	}
	for _, r := range c.m.take() {
		got = append(got, r.uri)
		if strings.Contains(fmt.Sprint(r), c.token) {
			c.t.Errorf("the origin got the token: %v", r)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		c.t.Errorf("the origin's requests (-want +got):\n%s", diff)
	}
}

// wantLowLatency checks that what distinguishes a low-latency stream took place.
func (c *crawler) wantLowLatency() {
	c.t.Helper()
	if c.skipped == 0 || c.hinted == 0 || c.reports == 0 {
		c.t.Errorf("%d delta updates, %d hints, %d rendition reports", c.skipped, c.hinted, c.reports)
	}
}

// An MPD as far as URIs go.
type (
	mpdDocument struct {
		Type     string       `xml:"type,attr"`
		Duration string       `xml:"mediaPresentationDuration,attr"`
		BaseURL  string       `xml:"BaseURL"`
		Location string       `xml:"Location"`
		Timing   mpdTiming    `xml:"UTCTiming"`
		Sets     []mpdElement `xml:"Period>AdaptationSet"`
	}
	mpdTiming struct {
		Value string `xml:"value,attr"`
	}
	mpdElement struct {
		ID              string       `xml:"id,attr"`
		BaseURL         string       `xml:"BaseURL"`
		Template        *mpdTemplate `xml:"SegmentTemplate"`
		List            *mpdList     `xml:"SegmentList"`
		Representations []mpdElement `xml:"Representation"`
	}
	mpdTemplate struct {
		Initialization string `xml:"initialization,attr"`
		Media          string `xml:"media,attr"`
		Duration       int    `xml:"duration,attr"`
		Timescale      int    `xml:"timescale,attr"`
		Timeline       []struct {
			Repeat int `xml:"r,attr"`
		} `xml:"SegmentTimeline>S"`
	}
	mpdList struct {
		Initialization mpdSegment   `xml:"Initialization"`
		Segments       []mpdSegment `xml:"SegmentURL"`
	}
	mpdSegment struct {
		SourceURL  string `xml:"sourceURL,attr"`
		Media      string `xml:"media,attr"`
		Range      string `xml:"range,attr"`
		MediaRange string `xml:"mediaRange,attr"`
	}
)

func (c *crawler) mpd(name string, body []byte) {
	c.t.Helper()
	var doc mpdDocument
	if err := xml.Unmarshal(body, &doc); err != nil {
		c.t.Errorf("%s: %v", name, err)
		return
	}
	if doc.Location != "" {
		if target, ok := c.resolve(name, doc.Location); ok {
			c.manifest(target)
		}
	}
	seconds := float64(liveLength)
	if doc.Type == "static" {
		duration, err := time.ParseDuration(strings.ToLower(strings.TrimPrefix(doc.Duration, "PT")))
		if err != nil {
			c.t.Errorf("%s: %v", name, err)
		}
		seconds = duration.Seconds()
	}
	base := c.base(name, doc.BaseURL)
	if doc.Timing.Value != "" {
		c.reference(base, doc.Timing.Value, "")
	}
	for _, set := range doc.Sets {
		setBase := c.base(base, set.BaseURL)
		for _, r := range set.Representations {
			itsBase := c.base(setBase, r.BaseURL)
			template := set.Template
			if r.Template != nil {
				template = r.Template
			}
			if template != nil {
				c.template(itsBase, r.ID, template, seconds)
			}
			if r.List != nil {
				c.reference(itsBase, r.List.Initialization.SourceURL, r.List.Initialization.Range)
				for _, s := range r.List.Segments {
					c.reference(itsBase, s.Media, s.MediaRange)
				}
			}
		}
	}
}

func (c *crawler) base(base, reference string) string {
	c.t.Helper()
	if target, ok := c.resolve(base, reference); ok {
		return target
	}
	return base
}

func (c *crawler) reference(base, reference, bounds string) {
	c.t.Helper()
	if target, ok := c.resolve(base, reference); ok {
		c.file(target, bounds)
	}
}

func (c *crawler) template(base, id string, template *mpdTemplate, seconds float64) {
	c.t.Helper()
	fill := func(text string, number int) string {
		return strings.NewReplacer("$RepresentationID$", id, "$Number%05d$", fmt.Sprintf("%05d", number)).Replace(text)
	}
	count := len(template.Timeline)
	for _, s := range template.Timeline {
		count += s.Repeat
	}
	if count == 0 {
		count = int(math.Ceil(seconds * float64(template.Timescale) / float64(template.Duration)))
	}
	c.reference(base, fill(template.Initialization, 0), "")
	for number := range count {
		c.reference(base, fill(template.Media, number+1), "")
	}
}

// ffmpeg plays everything through the gate, to the end.
func TestFFmpegPlaysManifests(t *testing.T) {
	ffmpeg := tool(t, "ffmpeg")
	m := startMediaOrigin(t, makeClips(t))
	g := start(t, m.origin, config{gate: m.gate()})
	good := mint(t, "vidA", nil)
	play := func(t *testing.T, address string, more ...string) (position float64, complaints []string) {
		args := slices.Concat([]string{"-v", "error", "-nostdin", "-progress", "pipe:1", "-i", address, "-map", "0:v", "-map", "0:a?"}, more, []string{"-f", "null", "-"})
		played := execute(t, "", "", ffmpeg, args...)
		if played.code != 0 {
			t.Errorf("exit status %d", played.code)
		}
		return lastProgress(played.stdout), distinct(strings.ReplaceAll(played.stderr, address, ""))
	}
	writtenClips(t, "ffmpeg", func(t *testing.T, c clip, way, folder string) {
		t.Parallel() // live streams take their time
		want, wantComplaints := float64(clipLength), []string(nil)
		var more []string
		switch c.name {
		case "ll":
			m.stream(way, "ll.ffmpeg").tick(50 * time.Millisecond)
			want = 3 * partsPerSegment / 2 // from three segments before what is the end
		case "live":
			want = 3
		case "dynamic":
			// It does not notice the end of a dynamic presentation.
			more, want = []string{"-t", "3"}, 3
		case "template", "list", "file":
			// It complains of the end of such MPDs, wherever they come from, and
			// forgets the last segment of a list.
			want, wantComplaints = play(t, m.server.URL+videoFolder+"relative/"+c.name+".direct/"+c.entry)
			if want < 4 {
				t.Fatalf("without the gate, %.1f seconds have played: %v", want, wantComplaints)
			}
		}
		position, complaints := play(t, g.url("/"+good+"/"+folder+c.entry), more...)
		if diff := cmp.Diff(wantComplaints, complaints); diff != "" {
			t.Errorf("what it complains of (-want +got):\n%s", diff)
		}
		if position < want-0.5 {
			t.Errorf("%.1f seconds have played, want %.1f", position, want)
		}
	})
	t.Cleanup(func() { m.wantNoToken(t, good) })
}

var pointer = regexp.MustCompile(`0x[0-9a-f]+`)

// distinct returns the lines of what ffmpeg complains of, each once.
func distinct(stderr string) []string {
	var lines []string
	for line := range strings.Lines(pointer.ReplaceAllString(stderr, "")) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "Last message repeated") {
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	return slices.Compact(lines)
}

// wantNoToken checks that the origin was only asked for the video, and never
// got a token.
func (m *mediaOrigin) wantNoToken(t testing.TB, tokens ...string) {
	t.Helper()
	for _, r := range m.take() {
		if !strings.HasPrefix(r.uri, videoFolder) {
			t.Errorf("the origin was asked for %s", r.uri)
		}
		for _, viewer := range tokens {
			if strings.Contains(fmt.Sprint(r), viewer) {
				t.Errorf("the origin got a token: %v", r)
			}
		}
	}
}

// lastProgress returns the position at which ffmpeg says that it ended.
func lastProgress(progress string) (seconds float64) {
	for line := range strings.Lines(progress) {
		if text, ok := strings.CutPrefix(line, "out_time_us="); ok {
			if us, err := strconv.ParseFloat(strings.TrimSpace(text), 64); err == nil {
				seconds = us / 1e6
			}
		}
	}
	return seconds
}

// Browsers play through the gate, with their own player and with those that
// pages bring along, from a page of another site.
func TestBrowserPlaysManifests(t *testing.T) {
	m := startMediaOrigin(t, makeClips(t))
	g := start(t, m.origin, config{gate: m.gate()})
	browser := startChromium(t)
	page := httptest.NewServer(http.FileServer(http.Dir(playersPage(t))))
	t.Cleanup(page.Close)

	const whole = 0
	for _, tc := range []struct {
		how, way, clip string
		seconds        int // to play, or whole
		options        string
	}{
		{"native", "rooted", "fmp4", whole, "{}"},
		{"native", "absolute", "audio", whole, "{}"},
		{"hls.js", "rooted", "fmp4", whole, "{}"},
		{"hls.js", "absolute", "ts", whole, "{}"},
		{"hls.js", "rooted", "aes", whole, "{}"},
		{"hls.js", "absolute", "live", whole, "{}"},
		{"hls.js", "absolute", "ll", 4, "{lowLatencyMode: true}"},
		{"shaka", "rooted", "fmp4", whole, "{}"},
		{"shaka", "absolute", "byterange", whole, "{}"},
		{"shaka", "absolute", "template", whole, "{}"},
		{"shaka", basedWay, "timeline", whole, "{}"},
		{"shaka", "rooted", "ll", 4, "{streaming: {lowLatencyMode: true}}"},
		{"dash.js", "absolute", "template", whole, "{}"},
		{"dash.js", basedWay, "list", whole, "{}"},
		{"dash.js", "rooted", "file", whole, "{}"},
		{"dash.js", "absolute", "dynamic", 4, "{}"},
	} {
		t.Run(fmt.Sprintf("%s, %s, %s", tc.how, tc.clip, tc.way), func(t *testing.T) {
			c := clips[slices.IndexFunc(clips, func(c clip) bool { return c.name == tc.clip })]
			label := c.name + "." + strings.ReplaceAll(tc.how, ".", "")
			if c.name == "ll" {
				m.stream(tc.way, label).tick(time.Second / 2)
			}
			rate, want := 4, "ended"
			if c.live {
				rate = 1
			}
			if tc.seconds > 0 {
				want = "played"
			}
			m.take()
			p := openPage(t, browser, g, page.URL+"/")
			good := mint(t, "vidA", nil)
			address := g.url("/" + good + "/" + tc.way + "/" + label + "/" + c.entry)
			got := evaluate[played](t, p, fmt.Sprintf("play(%q, %q, %d, %d, %s)", tc.how, address, rate, tc.seconds, tc.options))
			if got.End != want || len(got.Errors) > 0 || tc.seconds == whole && !c.live && got.Seconds < clipLength-0.5 {
				t.Errorf("it did not play to the end: %+v", got)
			}
			p.wantRequestsIn(t, "/"+good+"/", m.uris())
			if c.name == "ll" {
				m.wantLowLatency(t)
			}
			m.wantNoToken(t, good)
			if err := chromedp.Do(p.ctx, chromedp.Navigate("about:blank")); err != nil {
				t.Error(err)
			}
		})
	}
}

// played is what has come of playing.
type played struct {
	End     string   `json:"end"`
	Errors  []string `json:"errors"`
	Seconds float64  `json:"seconds"`
}

// wantLowLatency checks that a player played a low-latency stream as one.
func (m *mediaOrigin) wantLowLatency(t testing.TB) {
	t.Helper()
	var reloads, parts int
	for _, uri := range m.uris() {
		if strings.Contains(uri, "_HLS_msn=") {
			reloads++
		}
		if strings.Contains(uri, "/part") {
			parts++
		}
	}
	if reloads < 4 || parts < 4 {
		t.Errorf("%d blocking reloads and %d parts: %v", reloads, parts, m.uris())
	}
}

// playersPage makes a folder with the page and the players.
func playersPage(t testing.TB) (root string) {
	t.Helper()
	root = t.TempDir()
	for _, from := range []string{
		"testdata/players/index.html",
		"node_modules/hls.js/dist/hls.min.js",
		"node_modules/shaka-player/dist/shaka-player.compiled.js",
		"node_modules/dashjs/dist/modern/umd/dash.all.min.js",
	} {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatalf("%v; integration/install-tools.sh installs the players", err)
		}
		writeFile(t, filepath.Join(root, filepath.Base(from)), data)
	}
	return root
}

// A blocking reload waits at the origin until there is what it asks for, and
// tells the origin in the query what that is.
func TestBlockingReload(t *testing.T) {
	m := startMediaOrigin(t, makeClips(t, "ll"))
	g := start(t, m.origin, config{gate: m.gate()})
	space := "/" + mint(t, "vidA", nil) + "/"
	for _, way := range ways {
		t.Run(way, func(t *testing.T) {
			folder := way + "/ll.blocking/big/"
			s := m.stream(way, "ll.blocking")
			const parts = partsAtStart + 5*partsPerSegment // enough for some to be skipped
			s.release(parts - partsAtStart)
			m.take()
			ask := func(name string) <-chan *response {
				answered := make(chan *response, 1)
				go func() {
					defer close(answered)
					res, err := client.Get(g.url(space + folder + name))
					if err != nil {
						t.Error(err)
						return
					}
					defer res.Body.Close()
					body, err := io.ReadAll(res.Body)
					if err != nil {
						t.Error(err)
						return
					}
					answered <- &response{res, body}
				}()
				return answered
			}
			// The segment that is next has no part yet.
			reload := fmt.Sprintf("media.m3u8?_HLS_msn=%d&_HLS_part=0&_HLS_skip=YES", parts/partsPerSegment)
			hinted := fmt.Sprintf("part%03d.m4s", parts)
			playlist, part := ask(reload), ask(hinted)
			eventually(t, "both wait at the origin", func() bool { return s.waiting() == 2 })
			select {
			case res := <-playlist:
				t.Fatalf("the playlist did not wait: %d %s", res.StatusCode, res.body)
			case res := <-part:
				t.Fatalf("the part did not wait: %d", res.StatusCode)
			default:
			}
			s.release(1)
			got, media := <-playlist, <-part
			if got == nil || media == nil {
				t.Fatal("no answer")
			}
			if diff := cmp.Diff(plays, got.verdict()); diff != "" {
				t.Errorf("the playlist (-want +got):\n%s", diff)
			}
			for _, want := range []string{hinted, "#EXT-X-SKIP:SKIPPED-SEGMENTS=", `#EXT-X-RENDITION-REPORT:URI="../small/media.m3u8"`} {
				if !strings.Contains(string(got.body), want) {
					t.Errorf("%q is missing in the playlist:\n%s", want, got.body)
				}
			}
			if media.StatusCode != http.StatusOK || !bytes.Equal(media.body, m.file(t, folder+hinted)) {
				t.Errorf("the part: %d, %d bytes", media.StatusCode, len(media.body))
			}
			want := []string{videoFolder + folder + reload, videoFolder + folder + hinted}
			uris := m.uris()
			slices.Sort(uris)
			if diff := cmp.Diff(want, uris); diff != "" {
				t.Errorf("the origin's requests (-want +got):\n%s", diff)
			}

			// A viewer who goes away does not leave a request behind.
			ctx, leave := context.WithCancel(t.Context())
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.url(space+folder+"media.m3u8?_HLS_msn=14"), nil)
			if err != nil {
				t.Fatal(err)
			}
			left := make(chan error, 1)
			go func() {
				res, err := client.Do(req)
				if err == nil {
					res.Body.Close()
				}
				left <- err
			}()
			eventually(t, "it waits at the origin", func() bool { return s.waiting() == 1 })
			leave()
			if err := <-left; err == nil {
				t.Error("it was answered")
			}
			eventually(t, "it is gone from the origin", func() bool { return s.waiting() == 0 })
		})
	}
}

// What players and caches ask of a manifest is about the rewritten one.
func TestManifestRequests(t *testing.T) {
	m := startMediaOrigin(t, makeClips(t, "ts", "timeline"))
	g := startTLS(t, m.origin, config{gate: m.gate()})
	space := "/" + mint(t, "vidA", nil) + "/"
	for _, protocol := range protocols {
		for _, name := range []string{"absolute/ts/master.m3u8", "rooted/ts/big/media.m3u8", "relative/timeline/manifest.mpd", "based/timeline/manifest.mpd"} {
			t.Run(protocol.name+", "+name, func(t *testing.T) {
				c, _ := protocol.connect(t, g)
				atOrigin, err := client.Get(m.server.URL + videoFolder + name)
				if err != nil {
					t.Fatal(err)
				}
				original := readResponse(t, atOrigin)
				etag := original.Header.Get("ETag")
				if etag == "" || original.StatusCode != http.StatusOK {
					t.Fatalf("the origin: %d, ETag %q", original.StatusCode, etag)
				}
				whole := readResponse(t, g.ask(t, c, http.MethodGet, space+name))
				if same := bytes.Equal(whole.body, original.body); same != strings.HasPrefix(name, "relative") {
					t.Errorf("the same as at the origin: %v", same)
				}
				for _, tc := range []struct{ method, header string }{
					{http.MethodGet, "Accept: */*"},
					{http.MethodGet, "Range: bytes=0-"}, // as Chromium's own player does
					{http.MethodGet, "Range: bytes=0-1"},
					{http.MethodGet, "Range: bytes=-5"},
					{http.MethodGet, "If-None-Match: " + etag},
					{http.MethodGet, "If-None-Match: *"},
					{http.MethodGet, "If-Modified-Since: " + time.Now().UTC().Format(http.TimeFormat)},
					{http.MethodGet, `If-Match: "other"`},
					{http.MethodHead, "Accept: */*"},
					{http.MethodHead, "Range: bytes=0-"},
					{http.MethodHead, "If-None-Match: " + etag},
				} {
					got := readResponse(t, g.ask(t, c, tc.method, space+name, tc.header))
					what := tc.method + " with " + tc.header
					if got.StatusCode != http.StatusOK || got.ContentLength != int64(len(whole.body)) {
						t.Errorf("%s: %d, length %d, want 200 and %d", what, got.StatusCode, got.ContentLength, len(whole.body))
					}
					if got.Header.Get("Content-Type") != original.Header.Get("Content-Type") {
						t.Errorf("%s: Content-Type is %q", what, got.Header.Get("Content-Type"))
					}
					if want := whole.body; tc.method == http.MethodGet && !bytes.Equal(got.body, want) {
						t.Errorf("%s: the body is %q", what, got.body)
					}
					for _, field := range []string{"ETag", "Last-Modified", "Accept-Ranges", "Content-Range"} {
						if value := got.Header.Get(field); value != "" {
							t.Errorf("%s: %s is %q", what, field, value)
						}
					}
				}
			})
		}
	}
}

// An encode directive compresses what is rewritten.
func TestCompressedManifest(t *testing.T) {
	m := startMediaOrigin(t, makeClips(t, "ts", "timeline"))
	g := start(t, m.origin, config{gate: m.gate(), site: `encode gzip {
		minimum_length 1
		match {
			header Content-Type application/vnd.apple.mpegurl*
			header Content-Type application/dash+xml*
		}
	}
	reverse_proxy ` + m.addr()})
	space := "/" + mint(t, "vidA", nil) + "/"
	for _, name := range []string{"absolute/ts/master.m3u8", "rooted/ts/small/media.m3u8", "based/timeline/manifest.mpd"} {
		t.Run(name, func(t *testing.T) {
			plain := g.get(t, space+name, "Accept-Encoding: identity")
			m.take()
			// Named by the test, so that the client does not decompress it.
			got := g.get(t, space+name, "Accept-Encoding: gzip")
			if got.StatusCode != http.StatusOK || got.Header.Get("Content-Encoding") != "gzip" || !strings.Contains(strings.Join(got.Header.Values("Vary"), ","), "Accept-Encoding") {
				t.Fatalf("%d %v", got.StatusCode, got.Header)
			}
			reader, err := gzip.NewReader(bytes.NewReader(got.body))
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(reader)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(plain.body), string(body)); diff != "" {
				t.Errorf("the compressed manifest (-plain +compressed):\n%s", diff)
			}
			if bytes.Contains(body, []byte("origin.test")) || len(body) == 0 {
				t.Errorf("it is not rewritten:\n%s", body)
			}
			for _, r := range m.take() {
				if encoding := r.header.Get("Accept-Encoding"); encoding != "identity" {
					t.Errorf("the origin was asked for %q", encoding)
				}
			}
		})
	}
	media := g.get(t, space+"absolute/ts/big/001.ts", "Accept-Encoding: gzip")
	if !bytes.Equal(media.body, m.file(t, "absolute/ts/big/001.ts")) {
		t.Error("a segment is not what the origin has")
	}
}

// What the origin sends as a manifest and is none, or not all of one, is no
// manifest for a viewer either.
func TestBrokenManifests(t *testing.T) {
	const most = 8 << 20
	playlist := func(size int) []byte {
		return append([]byte("#EXTM3U\n"), bytes.Repeat([]byte("#\n"), (size-8)/2)...)
	}
	write := func(declared int, body []byte, whole bool) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/vnd.apple.mpegurl")
			if declared > 0 {
				w.Header().Set("Content-Length", strconv.Itoa(declared))
			}
			_, _ = w.Write(body)
			if !whole {
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}
		}
	}
	broken := verdict{http.StatusBadGateway, "manifest_invalid"}
	origins := map[string]struct {
		answer http.HandlerFunc
		want   verdict
	}{
		"whole.m3u8":            {write(0, playlist(1000), true), plays},
		"as-large-as-allowed":   {write(0, playlist(most), true), plays},
		"truncated.m3u8":        {write(1000, playlist(500), false), broken},
		"truncated-chunks.m3u8": {write(0, playlist(500), false), broken},
		"truncated.mpd":         {write(1000, []byte("<MPD><Period>"), false), broken},
		"unfinished.mpd":        {write(0, []byte("<MPD><Period>"), true), broken},
		"too-long.m3u8":         {write(most+2, playlist(most+2), true), broken},
		"too-long-chunks.m3u8":  {write(0, playlist(most+2), true), broken},
		"too-long-by-type":      {write(0, playlist(most+2), true), broken},
		"page.m3u8":             {write(0, []byte("<!doctype html><p>Not found"), true), broken},
		"empty.m3u8":            {write(0, nil, true), broken},
	}
	o := startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		origins[strings.TrimPrefix(r.URL.Path, videoFolder)].answer(w, r)
	}))
	g := start(t, o, config{})
	space := "/" + mint(t, "vidA", nil) + "/"
	for name, tc := range origins {
		t.Run(name, func(t *testing.T) {
			got := g.get(t, space+name)
			if diff := cmp.Diff(tc.want, got.verdict()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if tc.want == plays {
				return
			}
			if len(got.body) != 0 || got.Header.Get("Cache-Control") != "no-store" || got.Header.Get("Access-Control-Allow-Origin") != "*" {
				t.Errorf("the refusal: %v, %d bytes", got.Header, len(got.body))
			}
		})
	}
	// The gate is none the worse for it.
	if got := g.get(t, space+"whole.m3u8"); got.verdict() != plays {
		t.Errorf("afterwards: %+v", got.verdict())
	}
}

// An origin that takes its time for a manifest holds up nobody but who asked for
// it.
func TestSlowOrigin(t *testing.T) {
	more := make(chan struct{})
	begun := make(chan struct{}, 2)
	gone := make(chan struct{}, 1)
	const playlist = "#EXTM3U\n#EXTINF:2,\n/vidA/001.ts\n"
	o := startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != videoFolder+"slow.m3u8" {
			_, _ = io.WriteString(w, playlist)
			return
		}
		for i := range len(playlist) {
			if i == 1 {
				begun <- struct{}{}
				select {
				case <-more:
				case <-r.Context().Done():
					gone <- struct{}{}
					return
				}
			}
			_, _ = io.WriteString(w, playlist[i:i+1])
			_ = http.NewResponseController(w).Flush()
		}
	}))
	g := start(t, o, config{})
	space := "/" + mint(t, "vidA", nil) + "/"
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	ask := func(ctx context.Context) <-chan string {
		answered := make(chan string, 1)
		go func() {
			defer close(answered)
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.url(space+"slow.m3u8"), nil)
			if err != nil {
				t.Error(err)
				return
			}
			res, err := client.Do(req)
			if err != nil {
				return
			}
			defer res.Body.Close()
			body, _ := io.ReadAll(res.Body)
			answered <- string(body)
		}()
		return answered
	}
	impatient, patient := ask(ctx), ask(t.Context())
	<-begun
	<-begun
	for range 50 {
		if got := g.get(t, space+"fast.m3u8"); got.verdict() != plays {
			t.Fatalf("another viewer got %+v", got.verdict())
		}
	}
	leave()
	<-gone
	if body, ok := <-impatient; ok {
		t.Errorf("who left got %q", body)
	}
	close(more)
	if got, want := <-patient, strings.ReplaceAll(playlist, videoFolder, ""); got != want {
		t.Errorf("who waited got %q, want %q", got, want)
	}
}

// A redirect within the video's folder leads there for the viewer too. One to
// anywhere else is followed by nobody.
func TestRedirects(t *testing.T) {
	o := startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if to := r.URL.Query().Get("to"); to != "" {
			w.Header().Set("Location", to)
			w.WriteHeader(http.StatusFound)
			return
		}
		_, _ = io.WriteString(w, "#EXTM3U\n#"+r.URL.Path+"\n")
	}))
	g := start(t, o, config{gate: "manifest_hosts origin.test:8000"})
	good := mint(t, "vidA", nil)
	broken := verdict{http.StatusBadGateway, "manifest_invalid"}
	for _, from := range []string{"manifest/video.m3u8", "manifest/video.mpd", "video/001.ts", "other"} {
		for _, tc := range []struct{ to, end string }{
			{"/vidA/b/c.m3u8", "b/c.m3u8"},
			{"http://origin.test:8000/vidA/b/c.m3u8", "b/c.m3u8"},
			{"//origin.test:8000/vidA/c.m3u8", "c.m3u8"},
			{"http://" + g.addr + "/vidA/c.m3u8", "c.m3u8"}, // by the name that the viewer asked for
			{"/vidA/b/../c.m3u8?x=1", "c.m3u8?x=1"},
			{"http://origin.test/vidA/c.m3u8", ""}, // another port
			{"http://evil.test/vidA/c.m3u8", ""},
			{"//evil.test/vidA/c.m3u8", ""},
			{`\\evil.test/vidA/c.m3u8`, ""},
			{"http://origin.test:8000@evil.test/vidA/c.m3u8", ""},
			{"http://127.0.0.1:2019/load", ""},
			{"/vidB/c.m3u8", ""},
			{"/vidA/../vidB/c.m3u8", ""},
			{"/vidA/%2e%2e/vidB/c.m3u8", ""},
			{"../../vidB/c.m3u8", ""},
			{"file:///etc/passwd", ""},
		} {
			t.Run(from+" to "+tc.to, func(t *testing.T) {
				got := g.get(t, "/"+good+"/"+from+"?to="+url.QueryEscape(tc.to))
				location := got.Header.Get("Location")
				if strings.Contains(location, good) {
					t.Errorf("the token is in %q", location)
				}
				if tc.end == "" {
					if got.verdict() != broken || location != "" {
						t.Errorf("%+v to %q, want a refusal", got.verdict(), location)
					}
					return
				}
				next, err := got.Location()
				if err != nil || got.StatusCode != http.StatusFound {
					t.Fatalf("%d, %v", got.StatusCode, err)
				}
				if want := g.url("/" + good + "/" + tc.end); next.String() != want {
					t.Fatalf("it leads to %s, want %s", next, want)
				}
				o.take()
				o.wantPassed(t, g.get(t, next.RequestURI()), videoFolder+tc.end)
			})
		}
	}
}

// cache is a shared cache in front of an origin, which knows a response by its
// URI.
type cache struct {
	upstream string

	mu     sync.Mutex
	stored map[string]*httptest.ResponseRecorder
}

// ServeHTTP implements http.Handler.
func (c *cache) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	stored := c.stored[r.RequestURI]
	if stored == nil {
		stored = httptest.NewRecorder()
		c.stored[r.RequestURI] = stored
		if res, err := client.Get(c.upstream + r.RequestURI); err != nil {
			stored.WriteHeader(http.StatusBadGateway)
		} else {
			defer res.Body.Close()
			maps.Copy(stored.Header(), res.Header)
			stored.WriteHeader(res.StatusCode)
			_, _ = io.Copy(stored, res.Body)
		}
	}
	maps.Copy(w.Header(), stored.Header())
	w.WriteHeader(stored.Code)
	_, _ = w.Write(stored.Body.Bytes())
}

// To a cache between gate and origin, all viewers ask for the same.
func TestCacheBehindGate(t *testing.T) {
	m := startMediaOrigin(t, makeClips(t, "fmp4", "aes", "template"))
	between := startOrigin(t, &cache{upstream: m.server.URL, stored: make(map[string]*httptest.ResponseRecorder)})
	g := start(t, between, config{gate: m.gate()})
	tokens := []string{mint(t, "vidA", nil), mint(t, "vidA", func(c *token.Claims) { c.Downloadable = true })}
	asked := make(map[string]int)
	for _, viewer := range tokens {
		crawler := newCrawler(t, g, m, viewer)
		for _, entry := range []string{"absolute/fmp4/master.m3u8", "rooted/aes/master.m3u8", "based/template/manifest.mpd"} {
			crawler.crawl(entry)
		}
		for _, target := range crawler.asked {
			asked[videoFolder+target]++
		}
	}
	atCache, atOrigin, twice, once := make(map[string]int), make(map[string]int), make(map[string]int), make(map[string]int)
	for uri := range asked {
		twice[uri], once[uri] = len(tokens), 1
	}
	for _, uri := range between.uris() {
		atCache[uri]++
	}
	for _, uri := range m.uris() {
		atOrigin[uri]++
	}
	if len(asked) < 20 {
		t.Errorf("only %d files were asked for", len(asked))
	}
	if diff := cmp.Diff(twice, atCache); diff != "" {
		t.Errorf("the cache's requests (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(once, atOrigin); diff != "" {
		t.Errorf("the origin's requests (-want +got):\n%s", diff)
	}
	m.wantNoToken(t, tokens...)
}
