// The time and the picture above the seek bar. The pictures come from a storyboard: WebVTT
// with a cue for each stretch of time, whose text is the address of a picture, or of a part
// of one (#xywh=160,0,160,90).

const PICTURE_WIDTH = 160; // pixels on the screen
const [preview, picture, previewTime] = ['preview', 'picture', 'preview-time'].map((id) => document.getElementById(id));
let previewed = 0; // seconds
let storyboard = null; // a track element, once the viewer has pointed at the seek bar

// loadStoryboard has the browser read the storyboard, for a video without one in vain. The
// track belongs to a video element of its own, because hls.js clears tracks of the other.
function loadStoryboard() {
  const address = new URL(options.storyboard || 'thumbnails/storyboard.vtt', base + session).href;
  if (storyboard?.src === address) return;
  storyboard = document.createElement('track');
  storyboard.kind = 'metadata';
  storyboard.src = address;
  storyboard.addEventListener('load', () => { if (!preview.hidden) showPicture(previewed); });
  document.createElement('video').append(storyboard);
  storyboard.track.mode = 'hidden';
}

// pictureAt returns the address of the picture at a time and the part of it to show, null
// if there is none.
function pictureAt(seconds) {
  const cue = [...storyboard.track.cues ?? []].find(({ startTime, endTime }) => startTime <= seconds && seconds < endTime);
  if (!cue) return null;
  try {
    const url = new URL(cue.text.trim(), storyboard.src);
    const part = /^#xywh=(?:pixel:)?(\d+),(\d+),(\d+),(\d+)$/.exec(url.hash)?.slice(1).map(Number);
    url.hash = '';
    return { address: url.href, part };
  } catch {
    return null;
  }
}

function showPicture(seconds) {
  const found = pictureAt(seconds);
  picture.hidden = !found;
  if (!found) return;
  const [x, y, width, height] = found.part ?? [0, 0, PICTURE_WIDTH, PICTURE_WIDTH * 9 / 16];
  if (picture.src !== found.address) picture.src = found.address;
  Object.assign(picture.style, {
    objectFit: found.part ? 'none' : 'contain',
    objectPosition: found.part ? `${-x}px ${-y}px` : 'center',
    width: `${width}px`,
    height: `${height}px`,
    zoom: Math.min(PICTURE_WIDTH / width, 1),
  });
}

function showPreview({ clientX }) {
  const { left, width } = seekBar.getBoundingClientRect();
  const [start, end] = seekableRange();
  if (end <= start) return;
  loadStoryboard();
  const part = Math.min(Math.max((clientX - left) / width, 0), 1);
  previewed = start + part * (end - start);
  previewTime.textContent = clockAt(previewed);
  showPicture(previewed);
  preview.style.setProperty('--at', part);
  preview.hidden = false;
}

function setUpPreview() {
  for (const name of ['pointermove', 'pointerdown']) seekBar.addEventListener(name, showPreview);
  for (const name of ['pointerleave', 'pointercancel']) seekBar.addEventListener(name, () => { preview.hidden = true; });
}
