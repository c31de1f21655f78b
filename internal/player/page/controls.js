// What is on the screen, and what the viewer's keys and clicks do.

let started = false; // the video has played, if only for a moment
let failure = null; // {reason, status} while the viewer is told why nothing plays

function refresh() {
  titleBar.hidden = !options.title || started || failure !== null;
  toggle.hidden = failure !== null || (options.controls && started);
  toggle.classList.toggle('playing', !video.paused);
  toggle.setAttribute('aria-label', video.paused ? 'Play' : 'Pause');
  video.inert = failure !== null;
}

// The browser's own controls show by themselves that they wait.
function showBusy(waits) {
  busy.hidden = options.controls || failure !== null || !waits;
}

function togglePlay() {
  if (!video.paused) {
    video.pause();
    return;
  }
  // A refusal to play is either an error, which is shown, or for want of a
  // gesture, and then the button is still there.
  play().catch(() => {});
  if (options.controls) video.focus({ preventScroll: true });
}

function toggleFullscreen() {
  if (document.fullscreenElement) {
    document.exitFullscreen();
  } else if (root.requestFullscreen) {
    root.requestFullscreen().catch(() => {});
  } else {
    video.webkitEnterFullscreen?.(); // iPhones know no other
  }
}

// A seek to the very end of a stream that is not there yet makes Chromium's
// own HLS player give up.
function seek(seconds) {
  const end = Number.isFinite(video.duration) ? video.duration - 0.25 : Infinity;
  video.currentTime = Math.max(Math.min(seconds, end), 0);
}

const KEYS = {
  ' ': togglePlay,
  k: togglePlay,
  m: () => { video.muted = !video.muted; },
  f: toggleFullscreen,
  ArrowLeft: () => seek(video.currentTime - 5),
  ArrowRight: () => seek(video.currentTime + 5),
};

function onKey(event) {
  // The browser's controls have keys of their own, and so has a button.
  if (options.controls || failure || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === ' ' && event.target === toggle) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (!Object.hasOwn(KEYS, key)) return;
  event.preventDefault();
  KEYS[key]();
}
