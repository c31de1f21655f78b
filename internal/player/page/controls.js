// What is on the screen, and what the viewer's keys, clicks and taps do.

const HIDE_AFTER = 3000; // milliseconds
const LIVE_EDGE = 5; // seconds that a viewer may be late and still see the stream live
const STEP = 5; // seconds of an arrow key

const [controls, seekBar, timeText, durationText, playButton, muteButton, volumeBar, liveButton, pipButton, fullscreenButton] =
  ['controls', 'seek', 'time', 'duration', 'play', 'mute', 'volume', 'live', 'picture_in_picture', 'fullscreen']
    .map((id) => document.getElementById(id));

let started = false; // the video has played, if only for a moment
let failure = null; // {reason, status} while the viewer is told why nothing plays
let dragging = false; // the viewer moves the seek bar
let hideTimer = 0;

function refresh() {
  titleBar.hidden = !options.title || started || failure !== null;
  toggle.hidden = failure !== null || (options.controls && started);
  controls.hidden = failure !== null || !options.controls;
  root.classList.toggle('playing', wantsPlay);
  for (const button of [toggle, playButton]) label(button, wantsPlay ? TEXTS.pause : TEXTS.play);
  video.inert = failure !== null;
  if (failure) closeMenus();
  wake();
}

function label(element, text) {
  element.setAttribute('aria-label', text);
  element.title = text;
}

function showBusy(waits) {
  busy.hidden = failure !== null || !waits;
}

// wake shows the controls until the video has played for a while and nobody uses them.
function wake() {
  root.classList.remove('idle');
  clearTimeout(hideTimer);
  hideTimer = setTimeout(hideControls, HIDE_AFTER);
}

function hideControls() {
  if (!wantsPlay || failure) return;
  const hovers = matchMedia('(hover: hover)').matches && controls.matches(':hover');
  if (hovers || dragging || controls.querySelector(':focus-visible') || openMenu()) wake();
  else root.classList.add('idle');
}

// ---- Position and sound ----------------------------------------------------

const isLive = () => video.duration === Infinity;

// seekableRange returns where the video can be: all of it, or the window of a live stream.
function seekableRange() {
  if (!isLive()) return [0, video.duration || 0];
  const { seekable } = video;
  return seekable.length > 0 ? [seekable.start(0), seekable.end(seekable.length - 1)] : [0, 0];
}

const liveEdge = () => hls?.liveSyncPosition ?? seekableRange()[1];

// Some browsers' own players give up after a seek to the very end of a stream that has not
// been loaded.
function seek(seconds) {
  const end = Number.isFinite(video.duration) ? video.duration - 0.25 : seekableRange()[1] || Infinity;
  video.currentTime = Math.max(Math.min(seconds, end), 0);
}

function clock(seconds) {
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.floor(seconds) % 60];
  if (parts[0] === 0) parts.shift();
  return parts.map((part, i) => (i > 0 ? String(part).padStart(2, '0') : part)).join(':');
}

// clockAt is the time of a position: from the start, or how far it is behind live.
function clockAt(seconds) {
  const [, end] = seekableRange();
  return isLive() ? `−${clock(Math.max(end - seconds, 0))}` : clock(seconds);
}

function showPosition() {
  if (isRenewing) return;
  const [start, end] = seekableRange();
  const live = isLive();
  const { buffered, currentTime } = video;
  let loaded = currentTime;
  for (let i = 0; i < buffered.length; i++) {
    if (buffered.start(i) <= currentTime + 0.1) loaded = Math.max(loaded, buffered.end(i));
  }
  [seekBar.min, seekBar.max] = [start, end];
  if (!dragging) seekBar.value = currentTime;
  const part = (seconds) => (end > start ? Math.min(Math.max((seconds - start) / (end - start), 0), 1) : 0);
  seekBar.style.setProperty('--played', part(Number(seekBar.value)));
  seekBar.style.setProperty('--loaded', part(loaded));
  timeText.textContent = clockAt(currentTime);
  durationText.textContent = live ? '' : ` / ${clock(end)}`;
  seekBar.setAttribute('aria-valuetext',
    live ? clockAt(currentTime) : TEXTS.position.replace('{time}', clock(currentTime)).replace('{duration}', clock(end)));
  const atEdge = live && liveEdge() - currentTime < LIVE_EDGE;
  timeText.hidden = atEdge;
  liveButton.hidden = !live;
  liveButton.classList.toggle('edge', atEdge);
  label(liveButton, atEdge ? TEXTS.live : TEXTS.go_live);
}

function goLive() {
  seek(liveEdge());
  play().catch(() => {});
}

function toggleMute() {
  video.muted = !video.muted;
  if (!video.muted && video.volume === 0) video.volume = 1;
}

function setVolume() {
  video.volume = volumeBar.value;
  video.muted = video.volume === 0;
}

function showVolume() {
  const silent = video.muted || video.volume === 0;
  root.classList.toggle('silent', silent);
  label(muteButton, silent ? TEXTS.unmute : TEXTS.mute);
  volumeBar.value = silent ? 0 : video.volume;
  volumeBar.style.setProperty('--played', volumeBar.value);
}

// ---- Playing and windows ---------------------------------------------------

// A refusal to play is either an error, which is shown, or the browser waits for a
// gesture, and then the button is still there.
function togglePlay() {
  if (wantsPlay) pause();
  else play().catch(() => {});
}

function toggleFullscreen() {
  if (document.fullscreenElement) {
    document.exitFullscreen();
  } else if (document.fullscreenEnabled) {
    root.requestFullscreen().catch(() => {});
  } else {
    video.webkitEnterFullscreen?.(); // iPhones know no other
  }
}

function showFullscreen() {
  const full = document.fullscreenElement !== null;
  root.classList.toggle('full', full);
  label(fullscreenButton, full ? TEXTS.leave_fullscreen : TEXTS.fullscreen);
}

function togglePictureInPicture() {
  const done = document.pictureInPictureElement ? document.exitPictureInPicture() : video.requestPictureInPicture();
  done.catch(() => {}); // there is no picture yet
}

// ---- Keys, clicks and taps -------------------------------------------------

const KEYS = {
  ' ': togglePlay,
  k: togglePlay,
  m: toggleMute,
  f: toggleFullscreen,
  ArrowLeft: () => seek(video.currentTime - STEP),
  ArrowRight: () => seek(video.currentTime + STEP),
};

function onKey(event) {
  wake();
  if (failure || event.ctrlKey || event.metaKey || event.altKey) return;
  // A button has a key of its own, and so has the volume.
  if (event.key === ' ' && event.target.closest?.('button')) return;
  if (event.target === volumeBar && event.key.startsWith('Arrow')) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (!Object.hasOwn(KEYS, key)) return;
  event.preventDefault();
  KEYS[key]();
}

// A tap on the video while it plays shows the controls or hides them, a click pauses.
function onVideoClick(event) {
  if (event.pointerType !== 'touch' || !options.controls || !wantsPlay) togglePlay();
  else if (root.classList.contains('idle')) wake();
  else root.classList.add('idle');
}

// A clicked button does not keep the focus: space is for the video then.
function onButtonClick({ detail, target }) {
  if (detail > 0) target.closest('button')?.blur();
}

function setUpControls() {
  const on = (element, names, listener) => names.split(' ').forEach((name) => element.addEventListener(name, listener));
  on(document, 'keydown', onKey);
  on(document, 'focusin', wake);
  on(document, 'pointermove', (event) => { if (event.pointerType !== 'touch') wake(); });
  on(document, 'fullscreenchange', showFullscreen);
  on(controls, 'pointerdown input', wake);
  on(controls, 'click', onButtonClick);
  on(video, 'click', onVideoClick);
  on(video, 'timeupdate durationchange progress seeked emptied', showPosition);
  on(video, 'volumechange', showVolume);
  on(seekBar, 'pointerdown', () => { dragging = true; });
  on(seekBar, 'pointerup pointercancel change blur', () => { dragging = false; });
  on(seekBar, 'input', () => { seek(Number(seekBar.value)); showPosition(); });
  on(volumeBar, 'input', setVolume);
  on(toggle, 'click', togglePlay);
  on(playButton, 'click', togglePlay);
  on(muteButton, 'click', toggleMute);
  on(liveButton, 'click', goLive);
  on(pipButton, 'click', togglePictureInPicture);
  on(fullscreenButton, 'click', toggleFullscreen);
  label(controls, TEXTS.controls);
  controls.removeAttribute('title');
  seekBar.setAttribute('aria-label', TEXTS.seek);
  volumeBar.setAttribute('aria-label', TEXTS.volume);
  liveButton.textContent = TEXTS.live;
  pipButton.hidden = !document.pictureInPictureEnabled;
  label(pipButton, TEXTS.picture_in_picture);
  fullscreenButton.hidden = !document.fullscreenEnabled && !video.webkitEnterFullscreen;
  showFullscreen();
  showVolume();
  showPosition();
}
