package manifest_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/net/idna"

	"github.com/signed-playback/caddy-signed-playback/manifest"
)

// This file is a slow and obvious second implementation of how a browser reads URIs
// and manifests. It shares no code with the package.

// spot is where a URI leads a browser. odd marks a URI whose host is not written as
// in RFC 3986: the package may leave it as it is.
type spot struct {
	host string // or, for other schemes, the whole URI
	path string
	odd  bool
}

const (
	originHost = "origin.example"
	viewerHost = "gw.example"
	viewerRoot = "/mount/TOKEN/"
)

func originSpot(at manifest.Location) spot { return spot{host: originHost, path: at.Path} }

func viewerSpot(at manifest.Location) spot {
	return spot{host: viewerHost, path: viewerRoot + strings.TrimPrefix(at.Path, at.Folder)}
}

var schemePattern = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*:`)

// visit follows a URI like a browser on an https page (URL standard, section 4.4).
func visit(from spot, uri string) spot {
	uri = strings.TrimFunc(uri, func(r rune) bool { return r <= ' ' })
	uri = strings.NewReplacer("\t", "", "\n", "", "\r", "").Replace(uri)
	uri, _, _ = strings.Cut(uri, "#")
	uri, _, _ = strings.Cut(uri, "?")
	scheme := strings.ToLower(schemePattern.FindString(uri))
	if scheme != "" && scheme != "http:" && scheme != "https:" {
		return spot{host: uri, odd: from.odd}
	}
	rest := strings.ReplaceAll(uri[len(scheme):], `\`, "/")
	slashes := len(rest) - len(strings.TrimLeft(rest, "/"))
	if slashes >= 2 || scheme == "http:" {
		host, path, _ := strings.Cut(rest[slashes:], "/")
		odd := slashes != 2 || strings.ContainsAny(host, "@%") || strings.HasSuffix(uri[:len(uri)-len(path)], `\`)
		host = host[strings.LastIndex(host, "@")+1:]
		host = strings.TrimSuffix(strings.ToLower(host), ":")
		if name, port, _ := strings.Cut(host, ":"); strings.ContainsFunc(host, func(r rune) bool { return r > unicode.MaxASCII }) {
			if ascii, err := idna.Lookup.ToASCII(name); err == nil {
				host = strings.TrimSuffix(ascii+":"+port, ":")
			}
			odd = true
		}
		if scheme != "https:" {
			host = strings.TrimSuffix(host, ":80")
		}
		if scheme != "http:" {
			host = strings.TrimSuffix(host, ":443")
		}
		if host == originHost+":8443" {
			host = originHost
		}
		return spot{host, clean("/" + path), odd}
	}
	if !strings.HasPrefix(from.path, "/") {
		return spot{host: from.host, odd: from.odd} // nothing is relative to these
	}
	odd := from.odd || scheme != ""
	switch {
	case slashes == 1:
		return spot{from.host, clean(rest), odd}
	case rest == "":
		return spot{from.host, from.path, odd}
	}
	return spot{from.host, clean(from.path[:strings.LastIndex(from.path, "/")+1] + rest), odd}
}

// clean removes dot segments.
func clean(path string) string {
	var kept []string
	segments := strings.Split(strings.TrimPrefix(path, "/"), "/")
	for i, s := range segments {
		last := i == len(segments)-1
		switch strings.ReplaceAll(strings.ToLower(s), "%2e", ".") {
		case ".":
			if last {
				kept = append(kept, "")
			}
		case "..":
			kept = kept[:max(len(kept)-1, 0)]
			if last {
				kept = append(kept, "")
			}
		default:
			kept = append(kept, s)
		}
	}
	return "/" + strings.Join(kept, "/")
}

// judge returns what is wrong with a rewritten URI, given where it leads on the
// origin and for the viewer, or "".
func judge(at manifest.Location, origin, viewer spot, before, after string) string {
	tail, inside := strings.CutPrefix(origin.path, at.Folder)
	switch {
	case before != after && viewer.host != viewerHost:
		return "something was written that leads to another host"
	case before != after && !strings.HasPrefix(viewer.path, viewerRoot):
		return "something was written that leads out of the viewer's folder"
	case origin.host == originHost && inside && viewer != (spot{viewerHost, viewerRoot + tail, viewer.odd}) && (!origin.odd || before != after):
		return "a file in the folder is not where the viewer looks for it"
	case origin.host != originHost && before != after:
		return "a foreign URI was changed"
	case origin.host != originHost && origin != viewer:
		return "a foreign URI leads elsewhere for the viewer"
	case origin.host == originHost && !inside && before != after && !strings.Contains(origin.path, "%"):
		return "a URI outside of the folder was changed"
	}
	return ""
}

func blank(r rune) bool { return r <= ' ' || unicode.IsSpace(r) || r == 0xFEFF }

// hlsURI is text of a playlist that is a URI for players, or may be one.
type hlsURI struct {
	text string
	may  bool // only if it leads into the folder
}

// quotedText is an attribute for a player that searches for a name and quotes.
var quotedText = regexp.MustCompile(`([^=",]*)=[ \t]*"([^"]*)"`)

// assetList is the name of an attribute with the whole name X-ASSET-LIST at its end.
var assetList = regexp.MustCompile(`(^|[^!-~])X-ASSET-LIST$`)

// hlsURIs returns the URIs of an HLS line, and the line without them.
func hlsURIs(line string) (uris []hlsURI, rest string) {
	line = strings.TrimSuffix(line, "\r")
	before := line[:len(line)-len(strings.TrimLeftFunc(line, blank))]
	line = line[len(before):]
	trim := func(s string) string { return strings.TrimFunc(s, func(r rune) bool { return r <= ' ' }) }
	if !strings.HasPrefix(line, "#") {
		uri := trim(line)
		if uri == "" {
			return nil, before + line
		}
		return []hlsURI{{text: uri}}, before + strings.Replace(line, uri, "", 1)
	}
	if !strings.HasPrefix(line, "#EXT") || strings.HasPrefix(line+":", "#EXTINF:") {
		_, found, ok := strings.Cut(line, "#EXT-X-")
		_, list, hasColon := strings.Cut(found, ":")
		if !ok || !hasColon {
			return nil, before + line
		}
		before, line = before+strings.TrimSuffix(line, list), list
	}
	if strings.HasPrefix(line, "#EXT-X-DEFINE:") {
		return nil, before + line
	}
	at := quotedText.FindAllStringSubmatchIndex(line, -1)
	if _, value, ok := strings.Cut(line, ":"); ok && len(at) == 0 && !strings.Contains(value, `"`) {
		text := trim(value)
		return []hlsURI{{text, true}}, before + strings.TrimSuffix(line, value) + strings.Replace(value, text, "", 1)
	}
	end := 0
	for _, m := range at {
		name, text := strings.TrimRightFunc(line[m[2]:m[3]], blank), trim(line[m[4]:m[5]])
		uris = append(uris, hlsURI{text, !strings.HasSuffix(name, "URI") && !assetList.MatchString(name)})
		rest += line[end:m[4]] + strings.Replace(line[m[4]:m[5]], text, "", 1)
		end = m[5]
	}
	return uris, before + rest + line[end:]
}

// node is an element of an MPD.
type node struct {
	name     string
	attrs    []xml.Attr
	text     string
	children []*node
}

// tree parses an MPD. It returns nil if encoding/xml refuses it.
func tree(doc []byte) *node {
	d := xml.NewDecoder(strings.NewReader(normalize(doc)))
	root := &node{}
	stack := []*node{root}
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) && len(stack) == 1 && len(root.children) == 1 {
			return root.children[0]
		}
		if err != nil {
			return nil
		}
		top := stack[len(stack)-1]
		switch t := t.(type) {
		case xml.StartElement:
			n := &node{name: t.Name.Local, attrs: slices.Clone(t.Attr)}
			top.children = append(top.children, n)
			stack = append(stack, n)
		case xml.EndElement:
			stack = stack[:len(stack)-1]
		case xml.CharData:
			top.text += string(t)
		}
	}
}

// normalize replaces line breaks in tags by spaces, which encoding/xml does not do
// in attributes.
func normalize(doc []byte) string {
	d := xml.NewDecoder(bytes.NewReader(doc))
	var b strings.Builder
	for {
		from := d.InputOffset()
		t, err := d.RawToken()
		if err != nil {
			return b.String() + string(doc[from:])
		}
		raw := string(doc[from:d.InputOffset()])
		if _, ok := t.(xml.StartElement); ok {
			raw = strings.NewReplacer("\t", " ", "\r", " ", "\n", " ").Replace(raw)
		}
		b.WriteString(raw)
	}
}

// finding is a URI in an MPD, with all spots to which it may lead.
type finding struct {
	uri  string
	at   []spot
	base bool // a BaseURL
}

// mpdURIs returns the URIs of an MPD, except for those that Representations inherit.
// ok is false if there are too many alternatives to follow.
func mpdURIs(n *node, document spot) (found []finding, ok bool) {
	ok = true
	add := func(uri string, from []spot) []spot {
		f := finding{uri: strings.TrimFunc(uri, func(r rune) bool { return r <= ' ' })}
		for _, s := range from {
			f.at = append(f.at, visit(s, f.uri))
		}
		found = append(found, f)
		return f.at
	}
	var walk func(n *node, outer []spot, opaque, inherited bool)
	walk = func(n *node, outer []spot, opaque, inherited bool) {
		for _, a := range n.attrs {
			isTime := n.name == "UTCTiming" && a.Name.Local == "value" && slices.ContainsFunc(n.attrs, func(a xml.Attr) bool {
				return a.Name.Local == "schemeIdUri" && strings.HasPrefix(a.Value, "urn:mpeg:dash:utc:http-")
			})
			switch {
			case opaque:
			case isTime:
				for uri := range strings.FieldsSeq(a.Value) {
					add(uri, outer)
				}
			case isMPDAttribute(n.name, a.Name) && (!inherited || a.Name.Space != ""):
				add(a.Value, outer)
			}
		}
		opaqueInside := opaque || n.name == "ContentProtection" || n.name == "EventStream"
		inner := outer
		var bases []spot
		for _, c := range n.children {
			if c.name == "BaseURL" && !opaqueInside {
				bases = append(bases, add(c.text, outer)...)
				found[len(found)-1].base = true
			}
		}
		if len(bases) > 0 {
			inner = bases
		}
		ok = ok && len(inner) < 256
		isLevel := slices.Contains([]string{"Period", "AdaptationSet", "Representation"}, n.name)
		for _, c := range n.children {
			switch {
			case opaqueInside || !ok:
			case c.name == "Location", c.name == "PatchLocation", c.name == "ImportedMPD":
				add(c.text, []spot{document})
			case c.name == "ContentSteering":
				add(c.text, inner)
			}
			isInformation := isLevel && slices.Contains([]string{"SegmentBase", "SegmentList", "SegmentTemplate"}, c.name)
			if ok {
				walk(c, inner, opaqueInside, inherited || isInformation)
			}
		}
	}
	walk(n, []spot{document}, false, false)
	return found, ok
}

func isMPDAttribute(element string, name xml.Name) bool {
	switch {
	case name.Local == "href":
		return name.Space != ""
	case name.Space != "":
		return false
	case name.Local == "sourceURL":
		return true
	case element == "SegmentURL":
		return name.Local == "media" || name.Local == "index"
	case element == "InitializationSet":
		return name.Local == "initialization"
	case element == "SegmentTemplate":
		return slices.Contains([]string{"media", "initialization", "index", "bitstreamSwitching"}, name.Local)
	}
	return false
}
