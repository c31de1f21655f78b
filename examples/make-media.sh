#!/usr/bin/env bash
#
# Makes the test-pattern clip in examples/media/demo: 12 seconds of ffmpeg's
# "testsrc2" picture, with its timer, and a sine tone that beeps every second.
# The result is committed; run this only to change it. Needs ffmpeg with
# libx264 (Debian: apt-get install ffmpeg). The same version of ffmpeg and
# libx264 gives the same bytes every time.
#
#   manifest/video.m3u8       HLS, fragmented MP4: two video renditions, audio
#   manifest/ts.m3u8          HLS, MPEG-TS: picture and sound in one stream
#   manifest/video.mpd        DASH: the same segments as video.m3u8
#   video/, audio/, ts/       the segments, 2 seconds each
#   thumbnails/thumbnail.jpg  one frame
#   downloads/default.mp4     the clip as one progressive file
#
# Every manifest names its segments with relative addresses that stay inside
# the clip's folder, which is checked before the old folder is replaced.
set -eu -o pipefail

seconds=12
segment=2
fps=25
video_codec=avc1.4d401e # H.264 main profile, level 3.0: see encode_video
audio_codec=mp4a.40.2   # AAC-LC

demo=$(cd "$(dirname "$0")" && pwd)/media/demo
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
out=$work/demo

run_ffmpeg() {
	ffmpeg -hide_banner -nostdin -loglevel error -y -fflags +bitexact "$@"
}

# encode_video WIDTH HEIGHT KBIT makes $work/HEIGHT.mp4. A keyframe starts each
# segment and, as there are no B-frames, timestamps start at zero.
encode_video() {
	run_ffmpeg -f lavfi -i "testsrc2=size=320x180:rate=$fps:duration=$seconds" \
		-vf "scale=$1:$2:flags=bicubic+bitexact+accurate_rnd,format=yuv420p" \
		-c:v libx264 -preset veryslow -profile:v main -level:v 3.0 -bf 0 \
		-threads 1 -b:v "$3k" -maxrate "$3k" -bufsize "$3k" \
		-g $((fps * segment)) -keyint_min $((fps * segment)) -sc_threshold 0 \
		-flags:v +bitexact -fflags +bitexact "$work/$2.mp4"
}

# encode_audio makes $work/audio.aac. This bare form has no edit list, so its
# timestamps start at zero too. Its frames, of 1024 samples, last just under the
# 12 seconds of the picture.
encode_audio() {
	run_ffmpeg -f lavfi -i "sine=frequency=440:beep_factor=4:sample_rate=48000" \
		-c:a aac -b:a 48k -ac 1 -threads 1 -frames:a $((seconds * 48000 / 1024)) \
		-flags:a +bitexact -fflags +bitexact "$work/audio.aac"
}

# package_fmp4 writes the segments that HLS and DASH share, the DASH manifest
# and HLS media playlists, with ffmpeg's numbers (0, 1, 2) for the streams.
package_fmp4() {
	mkdir -p "$out/manifest" "$out/stream0" "$out/stream1" "$out/stream2"
	# shellcheck disable=SC2016 # the dollar signs are DASH's
	run_ffmpeg -i "$work/180.mp4" -i "$work/90.mp4" -i "$work/audio.aac" \
		-map 0:v -map 1:v -map 2:a -c copy -fflags +bitexact \
		-f dash -seg_duration "$segment" -use_template 1 -use_timeline 1 \
		-adaptation_sets 'id=0,streams=v id=1,streams=a' -hls_playlist 1 \
		-init_seg_name '../stream$RepresentationID$/init.mp4' \
		-media_seg_name '../stream$RepresentationID$/$Number%03d$.m4s' \
		"$out/manifest/video.mpd"
	rm "$out/manifest/master.m3u8"
}

# name_stream NUMBER NAME FOLDER gives one of ffmpeg's streams its name and
# folder, and tidies its playlist: no dates, as they would differ on every run.
name_stream() {
	mkdir -p "$(dirname "$out/$3")"
	mv "$out/stream$1" "$out/$3"
	sed -e '/^#EXT-X-PROGRAM-DATE-TIME/d' -e "s#\.\./stream$1/#../$3/#" \
		-e 's/^#EXT-X-MEDIA-SEQUENCE.*/&\n#EXT-X-PLAYLIST-TYPE:VOD\n#EXT-X-INDEPENDENT-SEGMENTS/' \
		"$out/manifest/media_$1.m3u8" >"$out/manifest/$2.m3u8"
	rm "$out/manifest/media_$1.m3u8"
	sed -i -e "/<Representation id=\"$1\"/,/<\/Representation>/{
		s#<Representation id=\"$1\"#<Representation id=\"$2\"#
		s#\.\./stream\\\$RepresentationID\\\$/#../$3/#g
	}" "$out/manifest/video.mpd"
}

# peak_rate and average_rate FOLDER print the bits per second of its segments.
peak_rate() {
	wc -c "$out/$1"/*.m4s | awk -v s="$segment" \
		'$2 != "total" && $1 > max { max = $1 } END { print int(max * 8 / s) }'
}

average_rate() {
	cat "$out/$1"/*.m4s | wc -c | awk -v s="$seconds" '{ print int($1 * 8 / s) }'
}

# variant NAME FOLDER RESOLUTION prints a rendition's lines of the multivariant
# playlist.
variant() {
	printf '#EXT-X-STREAM-INF:BANDWIDTH=%d,AVERAGE-BANDWIDTH=%d,CODECS="%s,%s",RESOLUTION=%s,FRAME-RATE=%d.000,AUDIO="audio"\n%s.m3u8\n' \
		$(($(peak_rate "$2") + $(peak_rate audio))) \
		$(($(average_rate "$2") + $(average_rate audio))) \
		"$video_codec" "$audio_codec" "$3" "$fps" "$1"
}

write_multivariant() {
	cat <<-'END'
		#EXTM3U
		#EXT-X-VERSION:6
		#EXT-X-INDEPENDENT-SEGMENTS
		#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="audio",NAME="Tone",DEFAULT=YES,AUTOSELECT=YES,CHANNELS="1",URI="audio.m3u8"
	END
	variant video-180p video/180p 320x180
	variant video-90p video/90p 160x90
}

# package_ts writes the MPEG-TS segments and their playlist. Without the two mux
# options the timestamps would start at 1.4 seconds.
package_ts() {
	mkdir -p "$out/ts"
	run_ffmpeg -i "$work/180.mp4" -i "$work/audio.aac" -map 0:v -map 1:a -c copy \
		-muxpreload 0 -muxdelay 0 -fflags +bitexact -f hls -hls_time "$segment" -hls_playlist_type vod \
		-hls_flags independent_segments -start_number 1 -hls_base_url ../ts/ \
		-hls_segment_filename "$out/ts/%03d.ts" "$out/manifest/ts.m3u8"
}

write_extras() {
	mkdir -p "$out/thumbnails" "$out/downloads"
	run_ffmpeg -i "$work/180.mp4" -i "$work/audio.aac" -map 0:v -map 1:a -c copy \
		-fflags +bitexact -movflags +faststart "$out/downloads/default.mp4"
	run_ffmpeg -ss 4 -i "$work/180.mp4" -frames:v 1 -c:v mjpeg -q:v 3 -threads 1 \
		-flags:v +bitexact -fflags +bitexact "$out/thumbnails/thumbnail.jpg"
}

# manifest_uris prints every address in the manifests, with DASH's segment
# template shown as its first segment.
manifest_uris() {
	sed -n -e '/^[^#]/p' -e 's/.*URI="\([^"]*\)".*/\1/p' "$out"/manifest/*.m3u8
	grep -oE '(initialization|media)="[^"]*"' "$out/manifest/video.mpd" |
		sed -e 's/^[a-z]*="//' -e 's/"$//' -e 's/\$Number%03d\$/001/'
}

# check_uris fails when an address is absolute, leaves the clip's folder or
# names no file.
check_uris() {
	manifest_uris | sort -u | while read -r uri; do
		path=$(realpath -m "$out/manifest/$uri")
		case $uri in /* | *:*) path= ;; esac
		case $path in "$(realpath "$out")"/*) ;; *) path= ;; esac
		[ -f "$path" ] || {
			echo "a manifest names a bad address: $uri" >&2
			exit 1
		}
	done
}

encode_video 320 180 150
encode_video 160 90 50
encode_audio
package_fmp4
name_stream 0 video-180p video/180p
name_stream 1 video-90p video/90p
name_stream 2 audio audio
write_multivariant >"$out/manifest/video.m3u8"
package_ts
write_extras
check_uris

rm -rf "$demo"
mkdir -p "$(dirname "$demo")"
cp -R "$out" "$demo"
