package manifest

import (
	"bytes"
	"slices"
	"strings"
	"unicode/utf8"
)

// elementKind is what this package has to know of an element. It is zero for an
// element that the MPD schema does not have.
type elementKind uint32

const (
	known elementKind = 1 << iota
	root
	remote    // may be the root of a document to which an xlink:href leads
	operation // of a patch
	base      // BaseURL
	location
	level          // its BaseURLs and its segment information apply to all Representations within
	representation // a level too
	information    // SegmentBase, SegmentList or SegmentTemplate
	template       // a SegmentTemplate
	segment
	initialization
	timing
	descriptor // its scheme says what its value is
	event      // of an Event: its URI is that of another presentation or of a picture
	open       // may contain elements of other parties
	opaque     // contains data of other parties, which stay even if they look like those of an MPD
	steering   // goes unless Steering is allowed
	reporting  // goes unless Reporting is allowed
)

// kindOf returns the kind of an element of the MPD schema (ISO/IEC 23009-1, fifth
// edition with its amendment, and what players know of the sixth). Its name counts
// with any prefix: players ignore namespaces.
func kindOf(name []byte) elementKind {
	switch string(name) {
	case "MPD", "Patch":
		return known | root
	case "add", "remove", "replace":
		return known | operation
	case "BaseURL":
		return known | base
	case "Location", "PatchLocation", "ImportedMPD":
		return known | location
	case "SegmentTemplate":
		return known | information | template | remote
	case "SegmentList", "SegmentBase":
		return known | information | remote
	case "SegmentURL":
		return known | segment
	case "InitializationSet":
		return known | initialization | remote
	case "UTCTiming":
		return known | timing | open
	case "ContentProtection":
		return known | open | opaque
	case "EventStream":
		return known | open | opaque | remote
	case "Period", "AdaptationSet":
		return known | level | remote
	case "Representation":
		return known | level | representation | remote
	case "EmptyAdaptationSet", "Preselection", "ServiceDescription", "InitializationGroup", "InitializationPresentation", "UrlQueryInfo", "ExtUrlQueryInfo", "ExtHttpHeaderInfo":
		return known | remote
	case "InsertPresentation", "ReplacePresentation", "AlternativeMPD", "OverlayEvent", "Background", "SelectionInfo", "CryptoPeriod", "CryptoTimeline", "ContentAuthenticity":
		return known | event
	case "EssentialProperty", "SupplementalProperty":
		return known | descriptor | open
	case "ProgramInformation", "Event", "InbandEventStream", "AssetIdentifier", "OutputProtection", "Accessibility",
		"Role", "Rating", "Viewpoint", "Scope", "FramePacking", "AudioChannelConfiguration":
		return known | open
	case "SubRepresentation", "ContentComponent", "Subset", "GroupLabel", "Label", "Latency", "PlaybackRate", "OperatingQuality", "OperatingBandwidth", "QualityLatency", "PlaybackRestrictions", "LeapSecondInformation",
		"SegmentTimeline", "S", "Pattern", "P", "SegmentSequenceProperties", "Initialization", "RepresentationIndex",
		"BitstreamSwitching", "FailoverContent", "FCS", "Switching", "RandomAccess", "Resync", "ExtendedBandwidth", "ModelPair",
		"ContentPopularityRate", "PR", "ProducerReferenceTime", "RequestParam", "Title", "Source", "Copyright", "Selection":
		return known
	case "ContentSteering":
		return steering
	case "Metrics", "Reporting", "ClientDataReporting", "CMCDParameters":
		return reporting
	}
	return 0
}

// passes reports whether an element stays, or an operation of a patch that selects
// it. An element that is unknown here, and that some player may know or learn, stays
// only among the data of other parties.
func (d *mpd) passes(kind elementKind, open bool) bool {
	switch {
	case kind&steering != 0:
		return d.allowed&Steering != 0
	case kind&reporting != 0 || kind == 0 && !open:
		return d.allowed&Reporting != 0
	case kind&operation == 0:
		return true
	}
	for step := range strings.FieldsFuncSeq(d.value("sel")+" "+d.value("type"), isOutsideName) {
		if kind := kindOf(local([]byte(step))); kind&operation == 0 && !d.passes(kind, true) {
			return false
		}
	}
	return true
}

func isOutsideName(r rune) bool { return r < utf8.RuneSelf && !nameByte[r] }

// remove removes an element whose end tag was scanned last.
func (d *mpd) remove(e *element) error {
	if d.stage != writing {
		return nil
	}
	d.stats.Removed++
	return d.replace(e.start, d.pos)
}

// leadsToMPD reports whether the text of an element leads to a file of the folder
// that the gateway is sure to recognize as an MPD or a patch to one, because of its name.
func (d *mpd) leadsToMPD(e *element) bool {
	_, ref, _ := d.decode(e.text, e.value)
	result := d.follow(d.document[0], ref)
	ending := string(bytes.ToLower(d.path[max(0, len(d.path)-4):]))
	return (result == unchanged || result == rewritten) && (ending == ".mpd" || ending == ".mpp")
}

// leadsAbroad reports whether the URI of a remote element leads to another host
// although Steering is not allowed: that host could add the removed features to the MPD. A URN, such as
// urn:mpeg:dash:resolve-to-zero:2013, has a meaning and no document.
func (d *mpd) leadsAbroad(uri span, kind valueKind, bases []*baseURI) bool {
	_, ref, _ := d.decode(uri, kind)
	if d.allowed&Steering != 0 || len(ref) >= len("urn:") && bytes.EqualFold(ref[:len("urn:")], []byte("urn:")) {
		return false
	}
	return slices.ContainsFunc(bases, func(base *baseURI) bool { return d.follow(base, ref) == foreignURI })
}
