package manifest_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/signed-playback/caddy-signed-playback/manifest"
)

const session = "~0123456789abcdef0123456789ABCDEF/"

// belowSession is where the manifest is for a viewer with a session.
func belowSession(at manifest.Location) spot {
	return spot{host: viewerHost, path: viewerRoot + session + strings.TrimPrefix(at.Path, at.Folder)}
}

// once is what the gate makes of a path with the same session twice.
func once(s spot) spot {
	for strings.Contains(s.path, session+session) {
		s.path = strings.ReplaceAll(s.path, session+session, session)
	}
	return s
}

// checkRooted checks that a manifest with which a player begins leads it from its own place
// to where the same manifest without the session would lead it from a place below the
// session, and that other manifests are the same with a session. It reports whether the
// manifest is one with which a player begins.
func checkRooted(t *testing.T, body []byte, f manifest.Format, query string, features manifest.Features) (isRooted bool) {
	t.Helper()
	at := here
	plain, _, plainErr := manifest.Rewrite(nil, body, f, at, query, features)
	at.Session = session
	rooted, stats, err := manifest.Rewrite(nil, body, f, at, query, features)
	if plainErr != nil || err != nil {
		if plainErr != nil && err == nil {
			t.Errorf("%q is valid with a session only: %v", body, plainErr)
		}
		return false
	}
	if len(rooted) > manifest.MaxSessionGrowth*len(body)+4096 {
		t.Errorf("%d bytes became %d", len(body), len(rooted))
	}
	at.Playing = true
	if got, _, err := manifest.Rewrite(nil, body, f, at, query, features); err != nil || !bytes.Equal(got, rooted) && (f != manifest.HLS || !bytes.Equal(got, plain)) {
		t.Errorf("%q\nfor a client that plays already becomes\n%q, %v", body, got, err)
	}
	switch {
	case !stats.Rooted:
		if !bytes.Equal(rooted, plain) {
			t.Errorf("%q\nis not the first of a session, and becomes\n%q instead of\n%q", body, rooted, plain)
		}
	case f == manifest.HLS:
		checkRootedHLS(t, string(plain), string(rooted))
	default:
		checkRootedDASH(t, plain, rooted)
	}
	return stats.Rooted
}

func checkRootedHLS(t *testing.T, plain, rooted string) {
	t.Helper()
	before, after := strings.Split(plain, "\n"), strings.Split(rooted, "\n")
	if len(before) != len(after) {
		t.Fatalf("%q became %q", plain, rooted)
	}
	for i := range before[1:] {
		line, written := before[i+1], after[i+1]
		if line == written || nameInQuotes.MatchString(line) {
			line = ""
		}
		uris, rest := hlsURIs(line)
		written2, rest2 := hlsURIs(written)
		switch {
		case line == "" || strings.Contains(line, "{$"):
			uris, written2 = nil, nil
		case rest != rest2 || len(uris) != len(written2):
			t.Fatalf("%q became %q: more than URIs changed", line, written)
		}
		for j, uri := range uris {
			want, got := visit(belowSession(here), uri.text), visit(viewerSpot(here), written2[j].text)
			may := uri.may || !strings.HasPrefix(got.path, viewerRoot) // what leads out of the folder stays
			if want != got && (!may || uri.text != written2[j].text) {
				t.Errorf("%q became %q, which leads to %v, want %v", uri.text, written2[j].text, got, want)
			}
		}
		if text := strings.TrimFunc(written, blank); line == "" && text != "" && text[0] != '#' && !nameInQuotes.MatchString(written) {
			if at := visit(viewerSpot(here), written); at.host == viewerHost && strings.HasPrefix(at.path, viewerRoot) && !strings.Contains(written, "{$") && !at.odd {
				t.Errorf("the URI %q stays above the session", written)
			}
		}
	}
}

func checkRootedDASH(t *testing.T, plain, rooted []byte) {
	t.Helper()
	before, after := tree(plain), tree(rooted)
	if before == nil {
		return
	}
	if after == nil {
		t.Fatalf("%q became %q, which is not XML", plain, rooted)
	}
	want, ok := mpdURIs(before, belowSession(here))
	if !ok {
		return
	}
	if bytes.Contains(rooted, []byte(session+"manifest/video.m3u8</")) && bytes.Contains(plain, []byte("Location")) {
		return // a Location was taken out
	}
	isAbove := func(s spot) bool {
		return s.host == viewerHost && strings.HasPrefix(s.path, viewerRoot) && !strings.HasPrefix(s.path, viewerRoot+session) && !s.odd
	}
	isOutside := func(s spot) bool {
		return s.odd || s.host == viewerHost && !strings.HasPrefix(s.path, viewerRoot+session)
	}
	// Shaka resolves URIs against a Location, which is below the session.
	for _, document := range []spot{viewerSpot(here), belowSession(here)} {
		got, _ := mpdURIs(after, document)
		for _, u := range want {
			if !slices.ContainsFunc(u.at, isOutside) && !leadsAlike(u, got) {
				t.Errorf("%q\nbecame %q:\nnothing leads to %v, as %q did", plain, rooted, u.at, u.uri)
			}
		}
		for _, u := range got {
			leadsAway := func(same finding) bool { return same.uri == u.uri && slices.ContainsFunc(same.at, isOutside) }
			if slices.ContainsFunc(u.at, isAbove) && !leadsAlike(u, want) && !slices.ContainsFunc(want, leadsAway) {
				t.Errorf("%q\nbecame %q:\n%q leads to %v", plain, rooted, u.uri, u.at)
			}
		}
	}
}

// leadsAlike reports whether some URI of an MPD leads to the same places. An empty one and
// a fragment are the MPD itself.
func leadsAlike(u finding, all []finding) bool {
	return u.uri == "" || u.uri[0] == '#' || slices.ContainsFunc(all, func(other finding) bool { return slices.Equal(spots(u.at), spots(other.at)) })
}

// spots returns the different places in their order.
func spots(all []spot) (different []spot) {
	for _, s := range all {
		if s = once(s); len(different) == 0 || different[len(different)-1] != s {
			different = append(different, s)
		}
	}
	return different
}

// Every manifest of the tables and of testdata leads below the session, or stays as it is.
func TestManifestsLeadBelowTheSession(t *testing.T) {
	t.Parallel()
	count := 0
	check := func(body []byte, query string) {
		if len(body) > 1<<14 {
			return // long for another reason
		}
		for _, features := range []manifest.Features{0, allowed} {
			if checkRooted(t, body, formatOf(body), query, features) {
				count++
			}
		}
	}
	for _, pattern := range []string{"*.m3u8", "*.mpd"} {
		for _, body := range testdata(t, pattern) {
			check(body, "session=abc-123")
			if formatOf(body) == manifest.HLS {
				check(append(body, "\n#EXT-X-ENDLIST\n"...), "session=abc-123")
			}
		}
	}
	for _, tc := range hlsCases {
		for _, end := range []string{"", "\n#EXT-X-ENDLIST", "\n#EXT-X-STREAM-INF:BANDWIDTH=1\nx.m3u8"} {
			check([]byte("#EXTM3U\n"+tc.in+end+"\n"), tc.query)
		}
	}
	for _, tc := range dashCases {
		check([]byte(tc.in), "")
	}
	for _, tc := range featureCases {
		check([]byte(tc.in), "")
	}
	if count < 400 {
		t.Errorf("%d manifests lead below a session", count)
	}
}

func TestRooted(t *testing.T) {
	t.Parallel()
	const to = "../" + session + "manifest/"
	for _, tc := range []struct{ name, in, want string }{
		{
			"a multivariant playlist", "#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO,URI=\"a/x.m3u8\"\n#EXT-X-STREAM-INF:BANDWIDTH=1\n../v/1.m3u8?a=1\n",
			"#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO,URI=\"" + to + "a/x.m3u8\"\n#EXT-X-STREAM-INF:BANDWIDTH=1\n../" + session + "v/1.m3u8?a=1\n",
		},
		{
			"a whole video", "#EXTM3U\n#EXT-X-MAP:URI=\"i.mp4\"\n#EXT-X-KEY:METHOD=AES-128,URI=\"/library/vidA/v1/k\"\n1.ts\nhttps://cdn.example/2.ts\n#EXT-X-ENDLIST\n",
			"#EXTM3U\n#EXT-X-MAP:URI=\"" + to + "i.mp4\"\n#EXT-X-KEY:METHOD=AES-128,URI=\"../" + session + "k\"\n" + to + "1.ts\nhttps://cdn.example/2.ts\n#EXT-X-ENDLIST\n",
		},
		{"a video that says so at the start", "#EXTM3U\n#EXT-X-PLAYLIST-TYPE:VOD\r\n1.ts\n", "#EXTM3U\n#EXT-X-PLAYLIST-TYPE:VOD\r\n" + to + "1.ts\n"},
		{"live", "#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:7\n1.ts\n", ""},
		{"an event that goes on", "#EXTM3U\n#EXT-X-PLAYLIST-TYPE:EVENT\n1.ts\n", ""},
		{
			"interstitials", "#EXTM3U\n#EXT-X-DATERANGE:ID=\"a\",X-ASSET-URI=\"ad.m3u8\"\n#EXT-X-ENDLIST\n",
			"#EXTM3U\n#EXT-X-DATERANGE:ID=\"a\",X-ASSET-URI=\"https://gw.example/T/" + session + "manifest/ad.m3u8\"\n#EXT-X-ENDLIST\n",
		},
		{"a URI without quotes stays, and plays", "#EXTM3U\n#EXT-X-MAP:URI=i.mp4\n#EXT-X-ENDLIST\n", "#EXTM3U\n#EXT-X-MAP:URI=i.mp4\n#EXT-X-ENDLIST\n"},
		{
			"an MPD", `<MPD type="dynamic"><ProgramInformation/><Period><SegmentTemplate media="$Number$.m4s"/></Period></MPD>`,
			`<MPD type="dynamic"><ProgramInformation/><BaseURL>` + to + "</BaseURL>\n<Location>" + to + "video.m3u8</Location>\n" + `<Period><SegmentTemplate media="$Number$.m4s"/></Period></MPD>`,
		},
		{
			"an MPD with a prefix", `<d:MPD xmlns:d="urn:x"><d:Period/></d:MPD>`,
			`<d:MPD xmlns:d="urn:x"><d:BaseURL>` + to + "</d:BaseURL>\n<d:Location>" + to + "video.m3u8</d:Location>\n<d:Period/></d:MPD>",
		},
		{
			"an MPD with base URLs", `<MPD><BaseURL>../v/</BaseURL><BaseURL>https://cdn.example/</BaseURL><Period><BaseURL>a/</BaseURL></Period></MPD>`,
			`<MPD><BaseURL>../` + session + `v/</BaseURL><BaseURL>https://cdn.example/</BaseURL><Location>` + to + "video.m3u8</Location>\n<Period><BaseURL>a/</BaseURL></Period></MPD>",
		},
		{
			"an MPD that has moved", `<MPD><Location>live.mpd</Location><PatchLocation>p.mpp</PatchLocation><Period/></MPD>`,
			`<MPD><BaseURL>` + to + "</BaseURL>\n<Location>" + to + `live.mpd</Location><PatchLocation>` + to + `p.mpp</PatchLocation><Period/></MPD>`,
		},
		{
			"queries of the MPD itself", `<MPD><Period><SegmentTemplate initialization="?i" media="$Number$.m4s"/></Period></MPD>`,
			`<MPD><BaseURL>` + to + "</BaseURL>\n<Location>" + to + "video.m3u8</Location>\n" + `<Period><SegmentTemplate initialization="video.m3u8?i" media="$Number$.m4s"/></Period></MPD>`,
		},
		{"a patch", `<Patch><add sel="/MPD/Period[1]"><BaseURL>x/</BaseURL></add></Patch>`, ""},
		{"a remote element", `<Period><BaseURL>x/</BaseURL></Period>`, ""},
		{"a storyboard", "WEBVTT\n\n00:00.000 --> 00:01.000\n/library/vidA/v1/t.jpg\n", "WEBVTT\n\n00:00.000 --> 00:01.000\n../t.jpg\n"},
	} {
		at := here
		at.Session, at.Base = session, "https://gw.example/T/"
		got, stats, err := manifest.Rewrite(nil, []byte(tc.in), formatOf(tc.in), at, "", 0)
		want := tc.want
		if want == "" {
			want = tc.in
		}
		if err != nil || string(got) != want || stats.Rooted != (tc.want != "" && !strings.HasPrefix(tc.in, "WEBVTT")) {
			t.Errorf("%s: %v, rooted %t\n got %q\nwant %q", tc.name, err, stats.Rooted, got, want)
		}
	}
}

// The attack: a playlist of names that are shorter than a session.
func TestGrowthByASessionIsBounded(t *testing.T) {
	t.Parallel()
	at := here
	at.Session = session
	for _, body := range []string{
		"#EXTM3U\n#EXT-X-ENDLIST\n" + strings.Repeat("1\n", 10_000),
		"<MPD>" + strings.Repeat("<PatchLocation>1.mpp</PatchLocation>", 10) + strings.Repeat("<Location>1.mpd</Location>", 10_000) + "</MPD>",
	} {
		_, _, err := manifest.Rewrite(nil, []byte(body), formatOf(body), at, "", allowed)
		if got := errors.Is(err, manifest.ErrInvalid); got != strings.HasPrefix(body, "#") {
			t.Errorf("%.20q: %v", body, err)
		}
	}
}
