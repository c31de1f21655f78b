package manifest_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/signed-playback/caddy-signed-playback/manifest"
)

// inheritCases are MPDs whose segment information is used at other base URIs than its own.
var inheritCases = []struct{ name, in, want string }{
	{
		"root-relative media for a Representation with a folder of its own",
		`<MPD><Period><AdaptationSet><SegmentTemplate media="/library/vidA/v1/media/$RepresentationID$-$Number$.m4s"/><Representation id="0"><BaseURL>low/</BaseURL></Representation></AdaptationSet></Period></MPD>`,
		`<MPD><Period><AdaptationSet><SegmentTemplate media="../../media/$RepresentationID$-$Number$.m4s"/><Representation id="0"><BaseURL>low/</BaseURL></Representation></AdaptationSet></Period></MPD>`,
	},
	{
		"one spelling for folders of one depth",
		`<MPD><Period><AdaptationSet><Representation><BaseURL>a/</BaseURL></Representation><Representation><BaseURL>/library/vidA/v1/b/c/</BaseURL></Representation><SegmentTemplate initialization="i" media='/library/vidA/v1/b/x'/></AdaptationSet></Period></MPD>`,
		`<MPD><Period><AdaptationSet><Representation><BaseURL>a/</BaseURL></Representation><Representation><BaseURL>../b/c/</BaseURL></Representation><SegmentTemplate initialization="i" media='../../b/x'/></AdaptationSet></Period></MPD>`,
	},
	{
		"folders of different depths, with and without an element of their own",
		`<MPD><Period><SegmentTemplate media="/library/vidA/v1/x" index='i'/><AdaptationSet><Representation><BaseURL>a/</BaseURL></Representation><Representation/><Representation><SegmentTemplate duration="4"/></Representation><Representation><SegmentTemplate media="m"/></Representation></AdaptationSet></Period></MPD>`,
		`<MPD><Period><SegmentTemplate media="../../x" index='i'/><AdaptationSet><Representation><BaseURL>a/</BaseURL><SegmentTemplate media="../../x"></SegmentTemplate></Representation><Representation><SegmentTemplate media="../x"></SegmentTemplate></Representation><Representation><SegmentTemplate media="../x" duration="4"/></Representation><Representation><SegmentTemplate media="m"/></Representation></AdaptationSet></Period></MPD>`,
	},
	{
		"a foreign Representation keeps what it had",
		`<MPD><Period><AdaptationSet><SegmentTemplate media="/library/vidA/v1/x?a&amp;b"/><Representation><BaseURL>https://cdn.example/</BaseURL></Representation><Representation/></AdaptationSet></Period></MPD>`,
		`<MPD><Period><AdaptationSet><SegmentTemplate media="/library/vidA/v1/x?a&amp;b"/><Representation><BaseURL>https://cdn.example/</BaseURL><SegmentTemplate media="/library/vidA/v1/x?a&amp;b"></SegmentTemplate></Representation><Representation><SegmentTemplate media="../x?a&amp;b"></SegmentTemplate></Representation></AdaptationSet></Period></MPD>`,
	},
	{
		"only foreign Representations",
		`<MPD><Period><AdaptationSet><SegmentTemplate media="/library/vidA/v1/x"/><Representation><BaseURL>https://cdn.example/</BaseURL></Representation></AdaptationSet></Period></MPD>`, "",
	},
	{
		"children of segment information",
		`<MPD><Period><AdaptationSet><SegmentList><Initialization sourceURL="/library/vidA/v1/i" range="0-9"></Initialization><SegmentURL media="/library/vidA/v1/1"/><SegmentURL media="2" index="/library/vidA/v1/3"/></SegmentList><Representation><BaseURL>a/</BaseURL></Representation><Representation><SegmentList><Initialization/></SegmentList></Representation><Representation><SegmentList/></Representation></AdaptationSet></Period></MPD>`,
		`<MPD><Period><AdaptationSet><SegmentList><Initialization sourceURL="../../i" range="0-9"></Initialization><SegmentURL media="../../1"/><SegmentURL media="2" index="../../3"/></SegmentList><Representation><BaseURL>a/</BaseURL>` +
			`<SegmentList><Initialization sourceURL="../../i" range="0-9"></Initialization><SegmentURL media="../../1"/><SegmentURL media="2" index="../../3"/></SegmentList></Representation><Representation>` +
			`<SegmentList><SegmentURL media="../1"/><SegmentURL media="2" index="../3"/><Initialization/></SegmentList></Representation><Representation><SegmentList><Initialization sourceURL="../i" range="0-9"></Initialization><SegmentURL media="../1"/><SegmentURL media="2" index="../3"/></SegmentList></Representation></AdaptationSet></Period></MPD>`,
	},
	{
		"BaseURL of the root above, and a folder below",
		`<MPD><BaseURL>https://origin.example/</BaseURL><Period><AdaptationSet><SegmentTemplate media="$Number$.m4s" initialization="/library/vidA/v1/i"/><Representation><BaseURL>library/vidA/v1/media/low/</BaseURL></Representation></AdaptationSet></Period></MPD>`,
		`<MPD><BaseURL>./</BaseURL><Period><AdaptationSet><SegmentTemplate media="$Number$.m4s" initialization="../../i"/><Representation><BaseURL>../media/low/</BaseURL></Representation></AdaptationSet></Period></MPD>`,
	},
	{
		"BaseURL of the root, below which a relative template needs a spelling for each folder",
		`<MPD><BaseURL>/</BaseURL><Period><AdaptationSet><SegmentTemplate media="v1/x"/><Representation><BaseURL>library/vidA/</BaseURL></Representation><Representation><BaseURL>library/vidA/v1/a/</BaseURL></Representation></AdaptationSet></Period></MPD>`,
		`<MPD><BaseURL>./</BaseURL><Period><AdaptationSet><SegmentTemplate media="../x"/><Representation><BaseURL>./</BaseURL><SegmentTemplate media="../x"></SegmentTemplate></Representation><Representation><BaseURL>../a/</BaseURL><SegmentTemplate media="v1/x"></SegmentTemplate></Representation></AdaptationSet></Period></MPD>`,
	},
	{
		"an AdaptationSet without Representations",
		`<MPD><Period><SegmentTemplate media="/library/vidA/v1/x"/><AdaptationSet xlink:href="a.xml"><BaseURL>a/b/</BaseURL></AdaptationSet></Period></MPD>`,
		`<MPD><Period><SegmentTemplate media="../../../x"/><AdaptationSet xlink:href="a.xml"><BaseURL>a/b/</BaseURL></AdaptationSet></Period></MPD>`,
	},
	{
		"a Location in a folder of the same depth, against which Shaka resolves",
		`<MPD><Location>/library/vidA/v1/live/x.mpd</Location><SegmentURL media="/library/vidA/v1/manifest/y"/><SegmentURL media="z"/></MPD>`,
		`<MPD><Location>../live/x.mpd</Location><SegmentURL media="../manifest/y"/><SegmentURL media="z"/></MPD>`,
	},
	{
		"a Location at another depth, which is taken out because no spelling serves dash.js and Shaka",
		`<MPD><Location>/library/vidA/v1/x.mpd</Location><Location>n.mpd</Location><BaseURL>a/</BaseURL><SegmentURL media="/library/vidA/v1/y"/></MPD>`,
		`<MPD><Location>n.mpd</Location><BaseURL>a/</BaseURL><SegmentURL media="../../y"/></MPD>`,
	},
	{
		"a Location at another depth above relative URIs",
		`<MPD><Location>../x.mpd</Location><BaseURL>a/</BaseURL><SegmentURL media="y"/></MPD>`, "",
	},
	{
		"the key of segments",
		`<MPD><Period><AdaptationSet><ContentProtection><sea:CryptoPeriod keyUriTemplate="/library/vidA/v1/key"/></ContentProtection><Representation><BaseURL>a/</BaseURL></Representation></AdaptationSet></Period></MPD>`,
		`<MPD><Period><AdaptationSet><ContentProtection><sea:CryptoPeriod keyUriTemplate="../../key"/></ContentProtection><Representation><BaseURL>a/</BaseURL></Representation></AdaptationSet></Period></MPD>`,
	},
	{
		"the key of segments for folders of different depths",
		`<MPD><Period><AdaptationSet><ContentProtection><sea:CryptoPeriod keyUriTemplate="/library/vidA/v1/key"/></ContentProtection><Representation><BaseURL>a/</BaseURL></Representation><Representation/></AdaptationSet></Period></MPD>`, refused,
	},
	{
		"prefixes stay",
		`<d:MPD xmlns:d="urn:mpeg:dash:schema:mpd:2011"><d:Period><d:AdaptationSet><d:SegmentTemplate media="/library/vidA/v1/x"/><d:Representation><d:BaseURL>a/</d:BaseURL></d:Representation><d:Representation/></d:AdaptationSet></d:Period></d:MPD>`,
		`<d:MPD xmlns:d="urn:mpeg:dash:schema:mpd:2011"><d:Period><d:AdaptationSet><d:SegmentTemplate media="../../x"/><d:Representation><d:BaseURL>a/</d:BaseURL><d:SegmentTemplate media="../../x"></d:SegmentTemplate></d:Representation><d:Representation><d:SegmentTemplate media="../x"></d:SegmentTemplate></d:Representation></d:AdaptationSet></d:Period></d:MPD>`,
	},
	{
		"alternatives of one Representation that no spelling serves",
		`<MPD><Period><AdaptationSet><SegmentTemplate media="/library/vidA/v1/x"/><Representation><BaseURL>a/</BaseURL><BaseURL>https://cdn.example/</BaseURL></Representation></AdaptationSet></Period></MPD>`, refused,
	},
	{
		"a namespace that the copies would lack",
		`<MPD><Period><AdaptationSet><x:SegmentTemplate xmlns:x="urn:x" media="/library/vidA/v1/x"/><Representation><BaseURL>a/</BaseURL></Representation><Representation/></AdaptationSet></Period></MPD>`, refused,
	},
	{
		"a list that would grow with the square of the manifest",
		`<MPD><Period><AdaptationSet><SegmentList>` + strings.Repeat(`<SegmentURL media="/library/vidA/v1/x"/>`, 60) + `</SegmentList>` + strings.Repeat(`<Representation/><Representation><BaseURL>a/</BaseURL></Representation>`, 60) + `</AdaptationSet></Period></MPD>`, refused,
	},
	{
		"a list that would take quadratic time",
		`<MPD><Period><AdaptationSet><SegmentList>` + strings.Repeat(`<SegmentURL media="x"/>`, 2000) + `</SegmentList><Representation><BaseURL>a/</BaseURL></Representation>` + strings.Repeat(`<Representation/>`, 2000) + `</AdaptationSet></Period></MPD>`, refused,
	},
	{
		"a list of which no Representation uses anything, in quadratic time",
		`<MPD><Period><AdaptationSet><SegmentList>` + strings.Repeat(`<SegmentURL media="x"/>`, 2000) + `</SegmentList>` + strings.Repeat(`<Representation><BaseURL>a/</BaseURL><SegmentList><SegmentURL/></SegmentList></Representation>`, 2000) + `</AdaptationSet></Period></MPD>`, refused,
	},
	{
		"more levels than memory",
		`<MPD><BaseURL>a/</BaseURL><Period><AdaptationSet>` + strings.Repeat(`<Representation/>`, 70_000) + `</AdaptationSet></Period></MPD>`, refused,
	},
	{
		"BaseURLs that multiply with the path above",
		`<MPD><BaseURL>` + strings.Repeat("a/", 900) + `</BaseURL><Period><AdaptationSet><SegmentTemplate media="x"/>` + strings.Repeat(`<Representation><BaseURL>a/</BaseURL></Representation>`, 3000) + `</AdaptationSet></Period></MPD>`, refused,
	},
}

func TestInheritance(t *testing.T) {
	t.Parallel()
	for _, tc := range inheritCases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			check(t, manifest.DASH, "", tc.in, "", tc.want, allowed)
			checkPlayed(t, []byte(tc.in))
		})
	}
}

// fetched is a URL that a Representation has a player request, by what names it.
type fetched map[string][]spot

// played returns what each Representation of an MPD has players request (ISO/IEC 23009-1
// sections 5.3.9 and 5.6.4): inherited information is merged, and resolved with all
// alternatives of all BaseURLs. dash.js uses some of them, Shaka uses all.
func played(mpd *node, document spot) (all []fetched) {
	var walk func(n *node, bases []spot, inherited map[string]*node)
	walk = func(n *node, bases []spot, inherited map[string]*node) {
		var own []spot
		for _, c := range n.children {
			if c.name == "BaseURL" {
				for _, b := range bases {
					own = append(own, visit(b, c.text))
				}
			}
		}
		if own != nil {
			bases = own
		}
		if len(bases) > 256 {
			return
		}
		merged := map[string]*node{}
		for _, name := range []string{"SegmentBase", "SegmentList", "SegmentTemplate"} {
			merged[name] = inherited[name]
			for _, c := range n.children {
				if c.name == name {
					merged[name] = merge(merged[name], c)
				}
			}
		}
		if n.name == "Representation" {
			all = append(all, requests(merged, bases))
		}
		for _, c := range n.children {
			if slices.Contains([]string{"Period", "AdaptationSet", "Representation"}, c.name) {
				walk(c, bases, merged)
			}
		}
	}
	walk(mpd, []spot{document}, map[string]*node{})
	return all
}

// merge returns an element with its own and its inherited attributes and children.
func merge(parent, child *node) *node {
	merged := &node{name: child.name, attrs: slices.Clone(child.attrs), children: slices.Clone(child.children)}
	if parent == nil {
		return merged
	}
	for _, a := range parent.attrs {
		if child.value(a.Name.Local) == nil {
			merged.attrs = append(merged.attrs, a)
		}
	}
	for _, c := range parent.children {
		if !slices.ContainsFunc(child.children, func(own *node) bool { return own.name == c.name }) {
			merged.children = append(merged.children, c)
		}
	}
	return merged
}

func (n *node) value(name string) *string {
	for i, a := range n.attrs {
		if a.Name.Local == name && a.Name.Space == "" {
			return &n.attrs[i].Value
		}
	}
	return nil
}

func requests(merged map[string]*node, bases []spot) fetched {
	f := fetched{}
	add := func(name string, uri *string) {
		if uri != nil {
			for _, b := range bases {
				f[name] = append(f[name], visit(b, *uri))
			}
		}
	}
	for kind, n := range merged {
		if n == nil {
			continue
		}
		if kind == "SegmentTemplate" {
			for _, name := range []string{"media", "index", "initialization", "bitstreamSwitching"} {
				add(kind+"@"+name, n.value(name))
			}
		}
		for i, c := range n.children {
			attributes := map[string][]string{
				"SegmentURL": {"media", "index"}, "Initialization": {"sourceURL"}, "RepresentationIndex": {"sourceURL"}, "BitstreamSwitching": {"sourceURL"},
			}
			for _, name := range attributes[c.name] {
				same := 0
				for _, before := range n.children[:i] {
					if before.name == c.name {
						same++
					}
				}
				add(fmt.Sprintf("%s/%s[%d]@%s", kind, c.name, same, name), c.value(name))
			}
		}
	}
	if merged["SegmentTemplate"] == nil && merged["SegmentList"] == nil {
		empty := ""
		add("BaseURL", &empty)
	}
	return f
}

// checkPlayed checks that players request the same files through the gateway as on the
// origin. It reports whether the manifest was rewritten.
func checkPlayed(t *testing.T, body []byte) bool {
	t.Helper()
	out, _, err := manifest.Rewrite(nil, body, manifest.DASH, here, "", allowed)
	if err != nil {
		if !errors.Is(err, manifest.ErrInvalid) {
			t.Errorf("%s\n%v", body, err)
		}
		return false
	}
	before, after := tree(body), tree(out)
	if before == nil || before.name != "MPD" {
		return true
	}
	origin, viewer := played(before, originSpot(here)), played(after, viewerSpot(here))
	// Shaka resolves URIs against a Location. One that leads out of the folder, which only
	// `steering` lets pass, leads players away.
	for _, c := range after.children {
		if at := visit(originSpot(here), c.text); c.name == "Location" && strings.HasPrefix(at.path, here.Folder) {
			origin = append(origin, played(before, at)...)
			viewer = append(viewer, played(after, visit(viewerSpot(here), c.text))...)
		}
	}
	if len(origin) != len(viewer) {
		t.Fatalf("%s\nbecame\n%s", body, out)
	}
	for i := range origin {
		if len(origin[i]) != len(viewer[i]) {
			t.Errorf("%s\nbecame\n%s\nRepresentation %d has %v, and then %v", body, out, i, origin[i], viewer[i])
		}
		for name, spots := range origin[i] {
			for j, want := range spots {
				if j >= len(viewer[i][name]) || !sameFile(want, viewer[i][name][j]) {
					t.Errorf("%s\nbecame\n%s\n%s of Representation %d leads to %v, and then to %v", body, out, name, i, want, viewer[i][name])
				}
			}
		}
	}
	return true
}

// sameFile reports whether the viewer gets what the origin has.
func sameFile(origin, viewer spot) bool {
	tail, inside := strings.CutPrefix(origin.path, here.Folder)
	switch {
	case origin.odd || strings.Contains(origin.path, "%"):
		return true // the tables say what is right
	case strings.HasSuffix(origin.path, "/"):
		return true // no file
	case origin.host != originHost:
		return viewer == origin
	case inside:
		return viewer.host == viewerHost && viewer.path == viewerRoot+tail
	}
	return viewer.host != viewerHost || !strings.HasPrefix(viewer.path, viewerRoot)
}

// randomMPD writes an MPD with segment information and BaseURLs at random levels. A
// tame one has a spelling for each Representation.
func randomMPD(r *rand.Rand, tame bool) string {
	pick := func(from ...string) string { return from[r.IntN(len(from))] }
	some := func(n int, text func() string) (all string) {
		for range r.IntN(n) {
			all += text()
		}
		return all
	}
	foreign := pick("", "https://cdn.example/", "https://cdn.example/library/vidA/v1/manifest/")
	uri := func() string {
		in := []string{"x", "a/y", "./a:b", "/library/vidA/v1/z", "/library/vidA/v1/manifest/a/z", "/other/x", "https://cdn.example/v", "?q"}
		if foreign == "" {
			in = append(in, "https://origin.example/library/vidA/v1/z?a&amp;b")
		}
		if !tame {
			in = append(in, "../x", "../../v1/x", "../../../../other", "//origin.example/library/vidA/v1/m", "library/vidA/v1/q", "..")
		}
		return pick(in...)
	}
	baseURL := func() string {
		in := []string{"a/", "b/c/", "./", "/library/vidA/v1/", "/library/vidA/v1/d/e/f", "https://origin.example/library/vidA/v1/g/"}
		if foreign != "" {
			in = []string{"a/", "b/c/", foreign}
		}
		if !tame {
			in = append(in, "/", "https://origin.example/", "library/vidA/v1/", "../", "../../", "//cdn.example/x/", "https://origin.example:8443/library/")
		}
		return "<BaseURL>" + pick(in...) + "</BaseURL>"
	}
	bases := func() string {
		if tame {
			return some(2, baseURL)
		}
		return some(2+r.IntN(2), baseURL)
	}
	attribute := func(name string) string {
		return some(2, func() string { return fmt.Sprintf(" %s=%q", name, uri()) })
	}
	child := func(name string, n int) string {
		return some(n, func() string {
			if name == "SegmentURL" {
				return "<SegmentURL" + attribute("media") + attribute("index") + pick("/>", "></SegmentURL>")
			}
			return "<" + name + attribute("sourceURL") + " range='0-9'/>"
		})
	}
	kind := pick("SegmentTemplate", "SegmentTemplate", "SegmentList", "SegmentBase")
	information := func() string {
		return some(2, func() string {
			attributes, children := ` timescale="1"`, child("Initialization", 2)+child("RepresentationIndex", 2)
			switch kind {
			case "SegmentTemplate":
				attributes += attribute("media") + attribute("initialization") + attribute("index") + attribute("bitstreamSwitching")
			case "SegmentList":
				children += child("SegmentURL", 4)
			}
			if children == "" {
				return "<" + kind + attributes + "/>"
			}
			return "<" + kind + attributes + ">" + children + "</" + kind + ">"
		})
	}
	var level func(names ...string) string
	level = func(names ...string) string {
		if len(names) == 0 {
			return ""
		}
		return some(4, func() string {
			parts := []string{bases(), information(), level(names[1:]...)}
			r.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
			if content := strings.Join(parts, ""); content != "" {
				return "<" + names[0] + ">" + content + "</" + names[0] + ">"
			}
			return "<" + names[0] + "/>"
		})
	}
	location := pick("", "<Location>/library/vidA/v1/manifest/next.mpd</Location>", "<Location>/library/vidA/v1/next.mpd</Location>", "<Location>../a/b/next.mpd</Location>", `<Period xlink:href="/library/vidA/v1/manifest/p.xml"/>`)
	return "<MPD>" + location + bases() + level("Period", "AdaptationSet", "Representation") + "</MPD>"
}

// For random trees, players request the same files as without the gateway. Where each
// Representation has a spelling of its own, no manifest is refused.
func TestRandomTrees(t *testing.T) {
	t.Parallel()
	for _, tame := range []bool{true, false} {
		rewritten, n := 0, 250
		for i := range n {
			body := randomMPD(rand.New(rand.NewPCG(uint64(i), 0)), tame)
			if checkPlayed(t, []byte(body)) {
				rewritten++
			} else if tame {
				_, _, err := manifest.Rewrite(nil, []byte(body), manifest.DASH, here, "", allowed)
				t.Errorf("%s\nis refused: %v", body, err)
			}
			if t.Failed() {
				return
			}
		}
		if rewritten < n/3 {
			t.Errorf("only %d of %d were rewritten", rewritten, n)
		}
	}
}

// FuzzInheritance makes random trees from a seed.
func FuzzInheritance(f *testing.F) {
	f.Add(uint64(0), true)
	f.Fuzz(func(t *testing.T, seed uint64, tame bool) {
		body := []byte(randomMPD(rand.New(rand.NewPCG(seed, 1)), tame))
		if checkPlayed(t, body) {
			rewriteTwice(t, body, manifest.DASH, "")
		}
	})
}
