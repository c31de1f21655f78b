// Package mediatype tells by names and content types what a file of a video is.
package mediatype

import "strings"

// The standard types of manifests.
const (
	HLS       = "application/vnd.apple.mpegurl" // RFC 8216 section 4
	DASH      = "application/dash+xml"          // ISO/IEC 23009-1 annex C
	DASHPatch = "application/dash-patch+xml"
)

// Ending returns the file extension of the last segment of a path without its dot, in
// lower case, because origins on file systems that ignore case serve video.M3U8 too.
func Ending(path string) string {
	name := path[strings.LastIndexByte(path, '/')+1:]
	dot := strings.LastIndexByte(name, '.')
	if dot < 0 {
		return ""
	}
	return strings.ToLower(name[dot+1:])
}

// IsManifest reports whether files with this ending are manifests.
func IsManifest(ending string) bool {
	return ending == "m3u8" || ending == "mpd" || ending == "mpp" // a DASH patch
}

// IsSegment reports whether files with this ending are audio, video, captions or keys.
func IsSegment(ending string) bool {
	switch ending {
	case "ts", "m2ts", "mp4", "m4s", "m4v", "m4a", "m4f", "cmfv", "cmfa", "cmft", "aac", "mp3", "ac3", "ec3", "ac4",
		"webm", "mkv", "mov", "ogg", "oga", "ogv", "opus", "flac", "wav", "vtt", "srt", "key":
		return true
	}
	return false
}

// Manifest returns the standard type of a manifest for a Content-Type that names one,
// "" for any other.
func Manifest(contentType string) string {
	mediaType, _, _ := strings.Cut(contentType, ";")
	switch mediaType = strings.ToLower(strings.TrimSpace(mediaType)); mediaType {
	case HLS, "application/x-mpegurl", "application/mpegurl",
		"audio/mpegurl", "audio/x-mpegurl", "audio/vnd.apple.mpegurl", "video/x-mpegurl":
		return HLS
	case DASH, "video/vnd.mpeg.dash.mpd":
		return DASH
	case DASHPatch:
		return DASHPatch
	}
	return ""
}
