package manifest

import (
	"bytes"
	"strings"
	"unicode/utf8"
)

// elementKind tells what becomes of an element. The zero elementKind is that of
// elements that the MPD schema does not have.
type elementKind uint8

const (
	schemaElement elementKind = iota + 1
	openElement               // may contain elements of other parties
	steeringElement
	reportingElement
)

// elements has the elements of the MPD schema (ISO/IEC 23009-1, fifth edition with
// its amendment, and RequestParam and SegmentSequenceProperties of the sixth). The
// names count with any prefix: players ignore namespaces.
var elements = func() map[string]elementKind {
	names := map[elementKind]string{
		schemaElement: `MPD Patch add remove replace BaseURL Location PatchLocation Period AdaptationSet EmptyAdaptationSet
			Representation SubRepresentation ContentComponent Preselection Subset GroupLabel Label InitializationSet
			InitializationGroup InitializationPresentation ServiceDescription Latency PlaybackRate OperatingQuality
			OperatingBandwidth QualityLatency LeapSecondInformation SegmentBase SegmentList SegmentTemplate SegmentURL
			SegmentTimeline S Pattern P SegmentSequenceProperties Initialization RepresentationIndex BitstreamSwitching
			FailoverContent FCS Switching RandomAccess Resync ExtendedBandwidth ModelPair ContentPopularityRate PR
			ProducerReferenceTime RequestParam Title Source Copyright SelectionInfo Selection`,
		openElement: `ProgramInformation Event AssetIdentifier ContentProtection OutputProtection EssentialProperty
			SupplementalProperty Accessibility Role Rating Viewpoint Scope FramePacking AudioChannelConfiguration
			InbandEventStream EventStream UTCTiming`,
		steeringElement:  `ContentSteering`,
		reportingElement: `Metrics Reporting ClientDataReporting CMCDParameters`,
	}
	kinds := make(map[string]elementKind)
	for kind, list := range names {
		for name := range strings.FieldsSeq(list) {
			kinds[name] = kind
		}
	}
	return kinds
}()

// passes reports whether an element stays, or an operation of a patch that selects
// it. An element that is unknown here, and that some player may know or learn, stays
// only among the data of other parties.
func (d *mpd) passes(name []byte, open bool) bool {
	switch elements[string(name)] {
	case 0:
		return open || d.allowed&Reporting != 0
	case steeringElement:
		return d.allowed&Steering != 0
	case reportingElement:
		return d.allowed&Reporting != 0
	}
	if name := string(name); name != "add" && name != "replace" && name != "remove" {
		return true
	}
	for step := range strings.FieldsFuncSeq(d.value("sel")+" "+d.value("type"), isOutsideName) {
		if !d.passes(local([]byte(step)), true) {
			return false
		}
	}
	return true
}

func isOutsideName(r rune) bool { return r < utf8.RuneSelf && !nameByte[r] }

// remove removes an element whose end tag was scanned last.
func (d *mpd) remove(e element) error {
	if d.collecting {
		return nil
	}
	d.stats.Removed++
	return d.replace(e.start, d.pos)
}

// leadsToMPD reports whether the text of an element leads to a file of the folder
// that the gateway is sure to recognize as an MPD or a patch to one, because of its name.
func (d *mpd) leadsToMPD(e element) bool {
	_, ref, _ := d.decode(e.text, e.kind)
	result := d.follow(d.document[0], ref)
	ending := string(bytes.ToLower(d.path[max(0, len(d.path)-4):]))
	return (result == unchanged || result == rewritten) && (ending == ".mpd" || ending == ".mpp")
}
