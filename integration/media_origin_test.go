package integration

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Origins of media here have one video, in /vidA/. In it are clips, in every
// form that packagers make, below one folder for each way of writing URIs:
// /vidA/<way>/<clip>/<file>. A clip's folder may have a suffix, as in live.2, so
// that a test has a live stream to itself.
const videoFolder = "/vidA/"

// ways are the ways in which an origin writes the URIs in its manifests.
var ways = []string{
	"relative", // as packagers write them
	"rooted",   // with a path from the root
	"absolute", // with scheme and host
}

// basedWay is one more for DASH: relative to a BaseURL that is the origin's root.
const basedWay = "based"

// clip is media in one form.
type clip struct {
	name  string
	entry string            // the manifest that players start with
	make  func(p *packager) // makes the files, in the folder that is named after it
	live  bool              // the manifest changes, see llHLS and liveDASH
}

// dash reports whether a clip is DASH, rather than HLS.
func (c clip) dash() bool { return strings.HasSuffix(c.entry, ".mpd") }

// ways are the ways in which an origin may write the manifests of a clip.
func (c clip) ways() []string {
	if c.dash() {
		return append(slices.Clip(ways), basedWay)
	}
	return ways
}

// clipLength is the duration of clips that are not live, in seconds.
const clipLength = 6

// liveLength is that of live streams from where they begin to where they end.
const liveLength = 30

var clips = []clip{
	{name: "ts", entry: "master.m3u8", make: func(p *packager) {
		p.hls(renditions, "-var_stream_map", varStreams, "-hls_segment_filename", "%v/%03d.ts", "%v/media.m3u8")
	}},
	{name: "fmp4", entry: "master.m3u8", make: func(p *packager) {
		p.hls(renditions, "-hls_segment_type", "fmp4", "-var_stream_map", varStreams, "-hls_segment_filename", "%v/%03d.m4s", "%v/media.m3u8")
	}},
	{name: "aes", entry: "master.m3u8", make: func(p *packager) {
		p.write("keys/1.key", []byte("sixteen bytes it"))
		// The URI, the file, and the initialization vector.
		p.write("keys/info", []byte("../keys/1.key\nkeys/1.key\n00112233445566778899aabbccddeeff\n"))
		p.hls(renditions, "-hls_key_info_file", "keys/info", "-var_stream_map", varStreams, "-hls_segment_filename", "%v/%03d.ts", "%v/media.m3u8")
		p.edit("master.m3u8", "#EXT-X-STREAM-INF", `#EXT-X-SESSION-KEY:METHOD=AES-128,URI="keys/1.key",IV=0x00112233445566778899aabbccddeeff`+"\n#EXT-X-STREAM-INF", 1)
	}},
	{name: "subtitles", entry: "master.m3u8", make: func(p *packager) {
		p.write("subtitles.vtt", []byte("WEBVTT\n\n00:00.500 --> 00:02.000\nOne\n\n00:03.000 --> 00:05.000\nTwo\n"))
		p.hls([]string{"-i", "../big.mp4", "-i", "subtitles.vtt", "-map", "0:v", "-map", "0:a", "-map", "1:s", "-c", "copy", "-c:s", "webvtt"},
			"-var_stream_map", "v:0,a:0,s:0,sgroup:subs,name:big", "-hls_segment_filename", "%v/%03d.ts", "%v/media.m3u8")
	}},
	{name: "audio", entry: "master.m3u8", make: func(p *packager) {
		p.hls([]string{"-i", "../big.mp4", "-i", "../small.mp4", "-map", "0:v", "-map", "0:a", "-map", "1:a", "-c", "copy"},
			"-hls_segment_type", "fmp4", "-var_stream_map", "v:0,agroup:aud,name:v a:0,agroup:aud,default:yes,language:en,name:en a:1,agroup:aud,language:de,name:de",
			"-hls_segment_filename", "%v/%03d.m4s", "%v/media.m3u8")
	}},
	{name: "byterange", entry: "master.m3u8", make: func(p *packager) {
		p.hls([]string{"-i", "../big.mp4", "-c", "copy"}, "-hls_flags", "single_file", "-hls_segment_filename", "all.ts", "media.m3u8")
	}},
	{name: "ll", entry: "master.m3u8", live: true, make: func(p *packager) {
		for _, rendition := range []string{"big", "small"} {
			p.mkdir(rendition)
			p.hls([]string{"-i", "../long-" + rendition + ".mp4", "-c", "copy"},
				"-hls_time", "0.5", "-hls_segment_type", "fmp4", "-hls_fmp4_init_filename", "init.mp4",
				"-hls_segment_filename", rendition+"/part%03d.m4s", rendition+"/media.m3u8")
			p.joinParts(rendition)
		}
		p.write("master.m3u8", []byte("#EXTM3U\n#EXT-X-VERSION:9\n#EXT-X-INDEPENDENT-SEGMENTS\n"+
			`#EXT-X-STREAM-INF:BANDWIDTH=300000,RESOLUTION=320x180,CODECS="`+videoCodec+"\"\nbig/media.m3u8\n"+
			`#EXT-X-STREAM-INF:BANDWIDTH=150000,RESOLUTION=160x90,CODECS="`+videoCodec+"\"\nsmall/media.m3u8\n"))
	}},
	{name: "template", entry: "manifest.mpd", make: func(p *packager) {
		p.dash("-use_template", "1", "-use_timeline", "0")
	}},
	{name: "timeline", entry: "manifest.mpd", make: func(p *packager) {
		p.dash("-use_template", "1", "-use_timeline", "1")
	}},
	{name: "list", entry: "manifest.mpd", make: func(p *packager) {
		p.dash("-use_template", "0", "-use_timeline", "0")
	}},
	{name: "file", entry: "manifest.mpd", make: func(p *packager) {
		p.dash("-single_file", "1")
	}},
	{name: "dynamic", entry: "manifest.mpd", live: true, make: func(p *packager) {
		p.run("-i", "../long-big.mp4", "-i", "../long-small.mp4", "-map", "0:v", "-map", "1:v", "-c", "copy", "-f", "dash", "-seg_duration", "1",
			"-adaptation_sets", "id=0,streams=v", "-use_template", "1", "-use_timeline", "0", "manifest.mpd")
	}},
}

// Codecs as ffmpeg's encoders are told to make them.
const (
	videoCodec = "avc1.42c00d"
	audioCodec = "mp4a.40.2"
)

// renditions are ffmpeg's inputs for two renditions with sound, and varStreams
// are their names.
var renditions = []string{"-i", "../big.mp4", "-i", "../small.mp4", "-map", "0:v", "-map", "0:a", "-map", "1:v", "-map", "1:a", "-c", "copy"}

const varStreams = "v:0,a:0,name:big v:1,a:1,name:small"

// packager makes one clip with ffmpeg.
type packager struct {
	t      testing.TB
	ffmpeg string
	dir    string
}

func (p *packager) run(args ...string) {
	p.t.Helper()
	args = append([]string{"-v", "error", "-nostdin", "-y"}, args...)
	if done := execute(p.t, p.dir, "", p.ffmpeg, args...); done.code != 0 || done.stderr != "" {
		p.t.Fatalf("ffmpeg %s: %+v", strings.Join(args, " "), done)
	}
}

// encode makes a video to package, with a keyframe every half second.
func (p *packager) encode(name, size string, seconds int, more ...string) {
	p.t.Helper()
	args := append([]string{"-f", "lavfi", "-i", fmt.Sprintf("testsrc2=size=%s:rate=24:duration=%d", size, seconds)}, more...)
	p.run(append(args, "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-bf", "0", "-level", "1.3",
		"-g", "12", "-keyint_min", "12", "-sc_threshold", "0", "-b:v", "150k", name)...)
}

func tone(hertz int) []string {
	return []string{"-f", "lavfi", "-i", fmt.Sprintf("sine=frequency=%d:sample_rate=48000:duration=%d", hertz, clipLength), "-c:a", "aac", "-b:a", "64k", "-ac", "1"}
}

func (p *packager) hls(input []string, output ...string) {
	p.t.Helper()
	args := slices.Concat(input, []string{"-f", "hls", "-hls_time", "2", "-hls_playlist_type", "vod", "-master_pl_name", "master.m3u8"}, output)
	p.run(args...)
	if _, err := os.Stat(filepath.Join(p.dir, "master.m3u8")); err == nil {
		// Without codecs, browsers find a playlist unplayable.
		p.edit("master.m3u8", "RESOLUTION=", `CODECS="`+videoCodec+","+audioCodec+`",RESOLUTION=`, -1)
	}
}

func (p *packager) dash(options ...string) {
	p.t.Helper()
	args := []string{
		"-i", "../big.mp4", "-i", "../small.mp4", "-map", "0:v", "-map", "1:v", "-map", "0:a", "-c", "copy", "-f", "dash",
		"-seg_duration", "2", "-adaptation_sets", "id=0,streams=v id=1,streams=a",
	}
	p.run(slices.Concat(args, options, []string{"manifest.mpd"})...)
}

func (p *packager) mkdir(name string) {
	p.t.Helper()
	noError(p.t, os.MkdirAll(filepath.Join(p.dir, name), 0o700))
}

func (p *packager) write(name string, data []byte) {
	p.t.Helper()
	p.mkdir(path.Dir(name))
	writeFile(p.t, filepath.Join(p.dir, name), data)
}

func (p *packager) read(name string) []byte {
	p.t.Helper()
	data := must(os.ReadFile(filepath.Join(p.dir, name)))(p.t)
	return data
}

func (p *packager) edit(name, before, after string, times int) {
	p.t.Helper()
	p.write(name, bytes.Replace(p.read(name), []byte(before), []byte(after), times))
}

// partsPerSegment is how many parts of a low-latency stream are a segment.
const partsPerSegment = 4

// joinParts makes segments of parts.
func (p *packager) joinParts(rendition string) {
	p.t.Helper()
	for segment := range 2 * liveLength / partsPerSegment {
		var whole []byte
		for part := range partsPerSegment {
			whole = append(whole, p.read(fmt.Sprintf("%s/part%03d.m4s", rendition, segment*partsPerSegment+part))...)
		}
		p.write(fmt.Sprintf("%s/%03d.m4s", rendition, segment), whole)
	}
}

// madeClips is the folder with the clips, which are made once for all tests.
var madeClips struct {
	once sync.Once
	dir  string
}

// makeClips makes all clips, each in a folder of its name.
func makeClips(t testing.TB) (dir string) {
	t.Helper()
	ffmpeg := tool(t, "ffmpeg")
	madeClips.once.Do(func() {
		var err error
		if madeClips.dir, err = os.MkdirTemp("", "clips"); err != nil {
			t.Fatal(err)
		}
		sources := &packager{t, ffmpeg, madeClips.dir}
		sources.encode("big.mp4", "320x180", clipLength, tone(440)...)
		sources.encode("small.mp4", "160x90", clipLength, tone(660)...)
		sources.encode("long-big.mp4", "320x180", liveLength)
		sources.encode("long-small.mp4", "160x90", liveLength)
		for _, c := range clips {
			p := &packager{t, ffmpeg, filepath.Join(madeClips.dir, c.name)}
			p.mkdir("")
			c.make(p)
		}
	})
	return madeClips.dir
}

// mediaOrigin serves clips as real origins do.
type mediaOrigin struct {
	*origin
	manifestWriter
	dir string

	mu      sync.Mutex
	streams map[string]*stream
}

func startMediaOrigin(t testing.TB) *mediaOrigin {
	t.Helper()
	m := &mediaOrigin{dir: makeClips(t), streams: make(map[string]*stream)}
	m.origin = startOrigin(t, m)
	m.host = m.invalidHost()
	t.Cleanup(m.closeStreams) // before the server, which waits for its requests
	return m
}

// invalidHost is the name by which an origin knows itself. No resolver knows it, so a
// player that asks there gets nothing.
func (o *origin) invalidHost() string {
	return "origin.invalid:" + port(o.addr())
}

// gate are the options of a gate in front of the origin.
func (m *mediaOrigin) gate() string { return "manifest_hosts " + m.host }

// ServeHTTP implements http.Handler.
func (m *mediaOrigin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts := strings.SplitN(r.URL.Path, "/", 5) // "", "vidA", way, clip, file
	if len(parts) < 5 || "/"+parts[1]+"/" != videoFolder {
		http.NotFound(w, r)
		return
	}
	way, folder, name := parts[2], parts[3], parts[4]
	clipName, _, _ := strings.Cut(folder, ".")
	file := filepath.Join(m.dir, clipName, filepath.FromSlash(name))
	switch ending := path.Ext(name); {
	case clipName == "dynamic" && name == "time":
		_, _ = fmt.Fprint(w, time.Now().UTC().Format(time.RFC3339Nano))
	case ending == ".m3u8" || ending == ".mpd":
		m.serveManifest(w, r, way, folder, file, clipName)
	case clipName == "ll" && strings.Contains(name, "/part"):
		// A part that a playlist has only hinted at is sent when it is there.
		if part, err := strconv.Atoi(name[len(name)-len("000.m4s") : len(name)-len(".m4s")]); err != nil || !m.stream(way, folder).await(r, part+1) {
			http.NotFound(w, r)
			return
		}
		fallthrough
	default:
		http.ServeFile(w, r, file)
	}
}

func (m *mediaOrigin) serveManifest(w http.ResponseWriter, r *http.Request, way, folder, file, clipName string) {
	manifest, err := os.ReadFile(file)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	ok := true
	switch {
	case clipName == "ll" && path.Base(file) == "media.m3u8":
		manifest, ok = m.stream(way, folder).llHLS(r, path.Dir(r.URL.Path))
	case clipName == "dynamic":
		manifest = m.stream(way, folder).liveDASH(manifest)
	}
	if !ok {
		http.Error(w, "not within three target durations", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("ETag", fmt.Sprintf(`"%x"`, sha256.Sum256(manifest)))
	live := clipName == "ll" && path.Base(file) == "media.m3u8" || clipName == "dynamic"
	// RFC 8216bis: the answer to a blocking reload stays what it is.
	w.Header().Set("Cache-Control", either(!live || r.URL.Query().Has("_HLS_msn"), "max-age=3600", "max-age=1"))
	if path.Ext(file) == ".mpd" {
		w.Header().Set("Content-Type", "application/dash+xml")
		manifest = m.writeDASH(manifest, way, path.Dir(r.URL.Path)+"/")
	} else {
		w.Header().Set("Content-Type", "application/vnd.apple.mpegurl")
		manifest = m.writeHLS(manifest, way, path.Dir(r.URL.Path)+"/")
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(manifest))
}

// manifestWriter writes the URIs of manifests in one of the ways.
type manifestWriter struct{ host string }

// write writes a URI in a way.
func (m manifestWriter) write(uri, way, dir string) string {
	full := path.Join(dir, uri)
	if strings.HasSuffix(uri, "/") {
		full += "/"
	}
	switch way {
	case "rooted":
		return full
	case "absolute":
		return "http://" + m.host + full
	case basedWay:
		return strings.TrimPrefix(full, "/")
	}
	return uri
}

var (
	hlsURI  = regexp.MustCompile(`(?m)^[^#\n].*$|URI="[^"]*"`)
	dashURI = regexp.MustCompile(`(?:media|initialization|sourceURL)="[^"]*"|value="time"|<(?:BaseURL|Location)>[^<]*<`)
)

func (m manifestWriter) writeHLS(manifest []byte, way, dir string) []byte {
	return hlsURI.ReplaceAllFunc(manifest, func(found []byte) []byte {
		uri, isAttribute := strings.CutPrefix(string(found), `URI="`)
		if isAttribute {
			return []byte(`URI="` + m.write(strings.TrimSuffix(uri, `"`), way, dir) + `"`)
		}
		return []byte(m.write(uri, way, dir))
	})
}

func (m manifestWriter) writeDASH(manifest []byte, way, dir string) []byte {
	manifest = dashURI.ReplaceAllFunc(manifest, func(found []byte) []byte {
		open := bytes.IndexAny(found, `">`) + 1
		name, uri := string(found[:open]), string(found[open:len(found)-1])
		if way == basedWay && name == "<Location>" {
			return []byte(name + m.write(uri, "rooted", dir) + "<") // no BaseURL applies
		}
		return []byte(name + m.write(uri, way, dir) + string(found[len(found)-1]))
	})
	if way == basedWay {
		manifest = bytes.Replace(manifest, []byte("<Period"), []byte("<BaseURL>http://"+m.host+"/</BaseURL>\n\t<Period"), 1)
	}
	return manifest
}

// stream returns the state of a live clip, which begins when it is first asked
// for.
func (m *mediaOrigin) stream(way, folder string) *stream {
	m.mu.Lock()
	defer m.mu.Unlock()
	name := way + "/" + folder
	if m.streams[name] == nil {
		m.streams[name] = &stream{began: time.Now(), changed: make(chan struct{}), closed: make(chan struct{}), parts: partsAtStart}
	}
	return m.streams[name]
}

func (m *mediaOrigin) closeStreams() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.streams {
		s.close()
	}
}

// stream is the state of a live clip.
type stream struct {
	began time.Time

	mu       sync.Mutex
	parts    int           // how many there are of low-latency HLS
	released []time.Time   // when, from partsAtStart on
	changed  chan struct{} // closed and replaced when there are more
	closed   chan struct{}
	ticking  bool
}

func (s *stream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.closed:
	default:
		close(s.closed)
	}
}

const (
	partsAll     = 2 * liveLength
	partsAtStart = 8 * partsPerSegment / 2
)

// release makes more parts of low-latency HLS exist.
func (s *stream) release(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parts = min(s.parts+n, partsAll)
	s.released = append(s.released, slices.Repeat([]time.Time{time.Now()}, n)...)
	close(s.changed)
	s.changed = make(chan struct{})
}

// tick releases a part at every tick, to the last.
func (s *stream) tick(every time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ticking {
		return
	}
	s.ticking = true
	ticker := time.NewTicker(every)
	go func() {
		defer ticker.Stop()
		for range partsAll {
			select {
			case <-ticker.C:
				s.release(1)
			case <-s.closed:
				return
			}
		}
	}()
}

// await waits until there are so many parts.
func (s *stream) await(r *http.Request, parts int) bool {
	for {
		s.mu.Lock()
		enough, changed := s.parts >= parts || s.parts == partsAll, s.changed
		s.mu.Unlock()
		if enough {
			return true
		}
		select {
		case <-changed:
		case <-s.closed:
			return false
		case <-r.Context().Done():
			return false
		}
	}
}

// llHLS makes the playlist of a low-latency stream, RFC 8216bis. It awaits the
// segment and the part that the request asks for, and leaves out what the
// player has if that is what it asks for.
func (s *stream) llHLS(r *http.Request, dir string) (playlist []byte, ok bool) {
	query := r.URL.Query()
	if msn, err := strconv.Atoi(query.Get("_HLS_msn")); err == nil {
		part, err := strconv.Atoi(query.Get("_HLS_part"))
		if err != nil {
			part = partsPerSegment - 1
		}
		if !s.await(r, msn*partsPerSegment+part+1) {
			return nil, false
		}
	}
	s.mu.Lock()
	parts := s.parts
	s.mu.Unlock()
	const (
		skipSegments = 6 // six target durations
		partSegments = 3 // of which parts are still listed
	)
	whole := parts / partsPerSegment
	var b bytes.Buffer
	b.WriteString("#EXTM3U\n#EXT-X-VERSION:9\n#EXT-X-TARGETDURATION:2\n")
	b.WriteString("#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,CAN-SKIP-UNTIL=12.0,PART-HOLD-BACK=1.5,HOLD-BACK=6.0\n#EXT-X-PART-INF:PART-TARGET=0.5\n#EXT-X-MEDIA-SEQUENCE:0\n")
	skipped := 0
	if query.Get("_HLS_skip") == "YES" && whole > skipSegments {
		skipped = whole - skipSegments
		fmt.Fprintf(&b, "#EXT-X-SKIP:SKIPPED-SEGMENTS=%d\n", skipped)
	} else {
		b.WriteString("#EXT-X-MAP:URI=\"init.mp4\"\n")
	}
	for segment := skipped; segment*partsPerSegment < parts; segment++ {
		if segment >= whole-partSegments {
			for part := segment * partsPerSegment; part < min((segment+1)*partsPerSegment, parts); part++ {
				fmt.Fprintf(&b, "#EXT-X-PART:DURATION=0.5,URI=\"part%03d.m4s\",INDEPENDENT=YES\n", part)
			}
		}
		if segment < whole {
			fmt.Fprintf(&b, "#EXTINF:2.0,\n%03d.m4s\n", segment)
		}
	}
	if parts == partsAll {
		b.WriteString("#EXT-X-ENDLIST\n")
		return b.Bytes(), true
	}
	fmt.Fprintf(&b, "#EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"part%03d.m4s\"\n", parts)
	other := map[string]string{"big": "small", "small": "big"}[path.Base(dir)]
	fmt.Fprintf(&b, "#EXT-X-RENDITION-REPORT:URI=\"../%s/media.m3u8\",LAST-MSN=%d,LAST-PART=%d\n", other, (parts-1)/partsPerSegment, (parts-1)%partsPerSegment)
	return b.Bytes(), true
}

// liveDASH makes of the MPD of all segments one that is ten seconds old when it
// is first asked for.
func (s *stream) liveDASH(all []byte) []byte {
	const age = 10 * time.Second
	now := time.Now().UTC()
	text := string(all)
	text = regexp.MustCompile(`type="static"\s+mediaPresentationDuration="[^"]*"`).ReplaceAllString(text, fmt.Sprintf(
		`type="dynamic" availabilityStartTime="%s" publishTime="%s" minimumUpdatePeriod="PT2S" timeShiftBufferDepth="PT8S" suggestedPresentationDelay="PT3S"`,
		s.began.Add(-age).UTC().Format(time.RFC3339), now.Format(time.RFC3339)))
	text = strings.Replace(text, "<Period", "<Location>manifest.mpd</Location>\n\t<Period", 1)
	text = strings.Replace(text, "</MPD>", "\t<UTCTiming schemeIdUri=\"urn:mpeg:dash:utc:http-iso:2014\" value=\"time\"/>\n</MPD>", 1)
	return []byte(text)
}
