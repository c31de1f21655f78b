package integration

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// ways are the ways in which an origin may write the manifests of a clip.
func (c clip) ways() []string {
	if c.dash() {
		return append(slices.Clip(ways), basedWay)
	}
	return ways
}

// writtenClips calls test for every clip and every way. The label makes the live
// streams of a test its own.
func writtenClips(t *testing.T, label string, test func(t *testing.T, c clip, way, folder string)) {
	for _, c := range clips {
		for _, way := range c.ways() {
			t.Run(c.name+", "+way, func(t *testing.T) { test(t, c, way, way+"/"+c.name+"."+label+"/") })
		}
	}
}

// Whatever an origin makes and however it writes its URIs: all of it is found
// under the viewer's own path, is what the origin has, and the origin is asked
// for just that.
func TestCrawl(t *testing.T) {
	t.Parallel()
	m := startMediaOrigin(t)
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

// A blocking reload waits at the origin until the origin has what it asks for, and
// the origin learns from the query what that is. A client that goes away leaves no
// request there.
func TestBlockingReload(t *testing.T) {
	t.Parallel()
	m := startMediaOrigin(t)
	g := start(t, m.origin, config{gate: m.gate()})
	space := "/" + mint(t, "vidA", nil) + "/"
	const (
		folder = "absolute/ll.blocking/big/"
		parts  = partsAtStart + 5*partsPerSegment // enough for some to be skipped
	)
	s := m.stream("absolute", "ll.blocking")
	s.release(parts - partsAtStart)
	// The segment that is next has no part yet.
	reload := fmt.Sprintf("media.m3u8?_HLS_msn=%d&_HLS_part=0&_HLS_skip=YES", parts/partsPerSegment)
	hinted := fmt.Sprintf("part%03d.m4s", parts)
	ctx, leave := context.WithCancel(t.Context())
	playlist, part := ask(t.Context(), g.url(space+folder+reload)), ask(t.Context(), g.url(space+folder+hinted))
	left := ask(ctx, g.url(space+folder+"media.m3u8?_HLS_msn=14"))
	eventually(t, "all wait at the origin", func() bool { return s.waiting() == 3 })
	leave()
	if res := <-left; res != nil {
		t.Errorf("the client that went away was answered: %v", res.verdict())
	}
	eventually(t, "its request is gone from the origin", func() bool { return s.waiting() == 2 })
	s.release(1)
	got, media := <-playlist, <-part
	if got == nil || media == nil {
		t.Fatal("no answer")
	}
	for _, want := range []string{hinted, "#EXT-X-SKIP:SKIPPED-SEGMENTS=", `#EXT-X-RENDITION-REPORT:URI="../small/media.m3u8"`} {
		if !strings.Contains(string(got.body), want) {
			t.Errorf("%v: %q is missing in the playlist:\n%s", got.verdict(), want, got.body)
		}
	}
	if !bytes.Equal(media.body, m.file(t, folder+hinted)) {
		t.Errorf("the part: %v, %d bytes", media.verdict(), len(media.body))
	}
	for _, want := range []string{reload, hinted} {
		if uri := videoFolder + folder + want; !slices.Contains(m.uris(), uri) {
			t.Errorf("the origin was not asked for %s", uri)
		}
	}
}

// ask asks for an address and sends what comes, or nil.
func ask(ctx context.Context, address string) <-chan *response {
	answered := make(chan *response, 1)
	go func() {
		defer close(answered)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return
		}
		res, err := client.Do(req)
		if err != nil {
			return
		}
		defer res.Body.Close()
		if body, err := io.ReadAll(res.Body); err == nil {
			answered <- &response{res, body}
		}
	}()
	return answered
}

// What players and caches ask of a manifest is about the rewritten one, in every
// version of HTTP.
func TestManifestRequests(t *testing.T) {
	t.Parallel()
	m := startMediaOrigin(t)
	g := startTLS(t, m.origin, config{gate: m.gate()})
	const name = "based/timeline/manifest.mpd"
	target := "/" + mint(t, "vidA", nil) + "/" + name
	atOrigin, err := client.Get(m.server.URL + videoFolder + name)
	if err != nil {
		t.Fatal(err)
	}
	original := readResponse(t, atOrigin)
	etag := original.Header.Get("ETag")
	for _, protocol := range protocols {
		t.Run(protocol.name, func(t *testing.T) {
			c, _ := protocol.connect(t, g)
			whole := readResponse(t, g.ask(t, c, http.MethodGet, target))
			if etag == "" || bytes.Equal(whole.body, original.body) {
				t.Fatal("the manifest is not rewritten, or has no ETag at the origin")
			}
			for _, tc := range []struct{ method, header string }{
				{http.MethodGet, "Range: bytes=0-1"},
				{http.MethodGet, "If-None-Match: " + etag},
				{http.MethodGet, `If-Match: "other"`},
				{http.MethodHead, "Range: bytes=0-"},
			} {
				got := readResponse(t, g.ask(t, c, tc.method, target, tc.header))
				what := tc.method + " with " + tc.header
				if got.StatusCode != http.StatusOK || got.ContentLength != int64(len(whole.body)) {
					t.Errorf("%s: %d, length %d, want 200 and %d", what, got.StatusCode, got.ContentLength, len(whole.body))
				}
				if tc.method == http.MethodGet && !bytes.Equal(got.body, whole.body) {
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

// An encode directive compresses the rewritten manifest, and leaves media alone.
func TestCompressedManifest(t *testing.T) {
	t.Parallel()
	m := startMediaOrigin(t)
	g := start(t, m.origin, config{gate: m.gate(), site: `encode gzip {
		minimum_length 1
		match header Content-Type application/dash+xml*
	}
	reverse_proxy ` + m.addr()})
	target := "/" + mint(t, "vidA", nil) + "/based/timeline/manifest.mpd"
	plain := g.get(t, target, "Accept-Encoding: identity")
	m.take()
	got := g.get(t, target, "Accept-Encoding: gzip") // named here, so that the client does not decompress it
	if got.Header.Get("Content-Encoding") != "gzip" || !strings.Contains(strings.Join(got.Header.Values("Vary"), ","), "Accept-Encoding") {
		t.Fatalf("%d %v", got.StatusCode, got.Header)
	}
	reader, err := gzip.NewReader(bytes.NewReader(got.body))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(reader)
	if diff := cmp.Diff(string(plain.body), string(body)); err != nil || diff != "" || bytes.Contains(body, []byte(m.host())) {
		t.Errorf("the compressed manifest: %v (-plain +compressed):\n%s", err, diff)
	}
	if asked := m.take(); len(asked) != 1 || asked[0].header.Get("Accept-Encoding") != "identity" {
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
		{"manifest/video.mpd", "/vidA/b/../c.m3u8?x=1", "c.m3u8?x=1"},
		{"video/001.ts", "http://origin.test/vidA/c.m3u8", ""}, // another port
		{"manifest/video.m3u8", `\\evil.test/vidA/c.m3u8`, ""},
		{"video/001.ts", "http://origin.test:8000@evil.test/vidA/c.m3u8", ""},
		{"manifest/video.m3u8", "/vidA/%2e%2e/vidB/c.m3u8", ""},
		{"video/001.ts", "file:///etc/passwd", ""},
	} {
		got := g.get(t, good+tc.from+"?to="+url.QueryEscape(tc.to))
		if tc.end == "" {
			o.take()
			if want := (verdict{http.StatusBadGateway, "manifest_invalid"}); got.verdict() != want || got.Header.Get("Location") != "" {
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
