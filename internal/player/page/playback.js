// Loading and playing the video.

let attempt = 0; // counts loads, so that what belongs to an earlier one is ignored
let attached = null; // a promise: the video has its source
let hls = null; // the hls.js instance in use
let loadedBase = ''; // the base of the last load
let recovered = false; // hls.js has been given its one chance after a decoder error
let failing = false; // the page is finding out why
let resumeAt = options.startTime;
let resumePlaying = options.autoplay;
let wantsPlay = false; // as video.paused would tell, if browsers did not pause on an error

const hasHLSJS = root.dataset.hlsJs === 'yes' &&
  Boolean(window.ManagedMediaSource ?? window.MediaSource ?? window.WebKitMediaSource);
const hasNativeHLS = video.canPlayType('application/vnd.apple.mpegurl') !== '';

// reopen asks the gate for the page again. The gate knows by the referrer who embeds a page,
// and this page is nobody. Without a referrer, frame-ancestors decides.
function reopen() {
  const link = document.createElement('a');
  link.href = location.href.replace(/#.*/, ''); // with a fragment, nothing would load
  link.rel = 'noreferrer';
  link.click();
}

function load() {
  if (refused) {
    reopen();
    return;
  }
  attempt++;
  loadedBase = base;
  if (failure?.reason === 'session_ended') session = ''; // the gate makes another one
  failing = recovered = wantsPlay = false;
  failure = null;
  showBusy(false);
  hls?.destroy();
  hls = null;
  failureBox.replaceChildren();
  if (options.poster) video.poster = options.poster;
  attached = attach(attempt);
  if (resumePlaying) play().catch(() => {});
  resumePlaying = false;
  refresh();
}

// The browser's own HLS is the second choice: some browsers claim to have it, and then
// stall without an error.
async function attach(current) {
  if (hasHLSJS) {
    const loaded = await fetchHLSJS();
    if (current !== attempt) return attached;
    if (loaded && window.Hls?.isSupported()) return attachHLSJS();
    if (!loaded && !hasNativeHLS) return fail();
  }
  if (!hasNativeHLS) return show({ reason: 'unsupported', status: 0 });
  video.src = manifest();
}

// fetchHLSJS reports whether the script has been loaded.
async function fetchHLSJS() {
  if (window.Hls) return true;
  const script = document.createElement('script');
  script.src = base + 'iframe/hls.js';
  const loaded = new Promise((resolve) => {
    script.onload = () => resolve(true);
    script.onerror = () => resolve(false);
  });
  document.head.append(script);
  if (!await loaded) script.remove();
  return loaded;
}

function attachHLSJS() {
  const { Events, ErrorTypes } = window.Hls;
  const instance = hls = new window.Hls({
    liveDurationInfinity: true, // as with native HLS
    // preload=metadata: no more than it takes to show the first picture.
    maxMaxBufferLength: options.preload === 'auto' ? 600 : 1,
    xhrSetup: (xhr, url) => {
      if (renewed(url) !== url) xhr.open('GET', renewed(url));
    },
    subtitlePreference: options.textTrack ? { lang: options.textTrack } : undefined,
  });
  hls.on(Events.ERROR, (_, data) => {
    if (!data.fatal || hls !== instance) return;
    if (data.type === ErrorTypes.MEDIA_ERROR && !recovered) {
      recovered = true;
      instance.recoverMediaError();
      return;
    }
    fail();
  });
  downloads.clear();
  hls.on(Events.FRAG_LOADING, (_, { frag, part }) => downloads.set(frag.type, part ?? frag));
  hls.attachMedia(video);
  if (options.preload !== 'none' || wantsPlay || started) hls.loadSource(manifest());
}

// rememberPlace tells load where to go on.
function rememberPlace() {
  resumeAt = video.currentTime || resumeAt;
  resumePlaying ||= wantsPlay;
}

async function play() {
  const current = attempt;
  wantsPlay = !failure;
  showBusy(video.readyState < HTMLMediaElement.HAVE_FUTURE_DATA);
  refresh();
  await attached;
  if (failure) throw new DOMException(`there is nothing to play: ${failure.reason}`, 'InvalidStateError');
  if (!wantsPlay) throw new DOMException('the video has been paused', 'AbortError');
  try {
    await video.play();
  } catch (error) {
    if (current === attempt && video.paused && !failing) onPause(); // the browser waits for a gesture
    throw error;
  }
}

function pause() {
  wantsPlay = false;
  video.pause();
  refresh();
}

function onPlay() {
  started = wantsPlay = true;
  if (hls) {
    hls.config.maxMaxBufferLength = 600;
    if (!hls.url) hls.loadSource(manifest());
  }
  refresh();
}

function onPause() {
  if (!video.error && !failing && !failure) wantsPlay = false;
  showBusy(false);
  refresh();
}

function onMetadata() {
  // A time past the end, or one of a stream that is live, means nothing here.
  if (resumeAt > 0 && resumeAt < video.duration && Number.isFinite(video.duration)) seek(resumeAt);
  resumeAt = 0;
  chooseTextTrack();
}

// A player may wait for media that never come, and no event tells. So the page looks
// itself, once a second.
const STALL_SECONDS = 10;
const downloads = new Map(); // what hls.js is loading of each type of media
let progressEvents = 0; // the browser's own player has loaded something
let lastProgress = '';
let stalledSeconds = 0;

// progress is a text that changes when the video moves or something has been loaded, if
// only a part of a segment over a slow network.
function progress() {
  const loaded = [...downloads.values()].map(({ stats }) => stats.loaded);
  const ends = Array.from({ length: video.buffered.length }, (_, i) => video.buffered.end(i));
  return [attempt, video.currentTime, progressEvents, ...loaded, ...ends].join();
}

function checkProgress() {
  const now = progress();
  const stalls = wantsPlay && !video.ended && now === lastProgress;
  stalledSeconds = stalls ? stalledSeconds + 1 : 0;
  lastProgress = now;
  if (stalledSeconds < STALL_SECONDS) return;
  stalledSeconds = 0;
  fail(() => progress() === now);
}
