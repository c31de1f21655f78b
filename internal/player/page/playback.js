// Loading and playing the video.

let attempt = 0; // counts loads, so that what belongs to an earlier one is ignored
let hls = null; // the hls.js instance in use
let native = video.canPlayType(NATIVE_TYPE) !== '';
let recovered = false; // hls.js has been given its one chance after a decoder error
let failing = false; // why is being found out
let resumeAt = options.startTime;
let resumePlaying = options.autoplay;
let wantsPlay = false; // as video.paused would tell, if browsers did not pause on an error

const hasHLSJS = root.dataset.hlsJs === 'yes' &&
  Boolean(window.ManagedMediaSource ?? window.MediaSource ?? window.WebKitMediaSource);

function load() {
  attempt++;
  failing = recovered = wantsPlay = false;
  failure = null;
  stopWaiting();
  hls?.destroy();
  hls = null;
  failureBox.replaceChildren();
  refresh();
  if (native) {
    video.src = manifest();
    resume();
  } else if (hasHLSJS) {
    loadWithHLSJS(attempt);
  } else {
    show({ reason: 'unsupported', status: 0 });
  }
}

// What load is to go on with, for it forgets.
function rememberPlace() {
  resumeAt = video.currentTime || resumeAt;
  resumePlaying ||= wantsPlay;
}

function resume() {
  if (resumePlaying) play().catch(() => {});
  resumePlaying = false;
}

async function play() {
  if (failure) throw new DOMException(`there is nothing to play: ${failure.reason}`, 'InvalidStateError');
  await video.play();
}

async function loadWithHLSJS(current) {
  try {
    await fetchHLSJS();
  } catch {
    if (current === attempt) fail();
    return;
  }
  if (current !== attempt) return;
  if (!window.Hls?.isSupported()) {
    show({ reason: 'unsupported', status: 0 });
    return;
  }
  attach(new window.Hls({
    // preload=metadata: no more than it takes to show the first picture.
    maxMaxBufferLength: options.preload === 'auto' ? 600 : 1,
    subtitlePreference: options.textTrack ? { lang: options.textTrack } : undefined,
  }));
  resume();
}

function fetchHLSJS() {
  if (window.Hls) return Promise.resolve();
  return new Promise((resolve, reject) => {
    const script = document.createElement('script');
    script.src = base + 'iframe/hls.js';
    script.onload = resolve;
    script.onerror = () => {
      script.remove();
      reject(new Error('hls.js has not been loaded'));
    };
    document.head.append(script);
  });
}

function attach(instance) {
  const { Events, ErrorTypes } = window.Hls;
  hls = instance;
  hls.on(Events.ERROR, (_, data) => {
    if (!data.fatal || hls !== instance) return;
    if (data.type === ErrorTypes.MEDIA_ERROR && !recovered) {
      recovered = true;
      instance.recoverMediaError();
      return;
    }
    fail();
  });
  hls.attachMedia(video);
  if (options.preload !== 'none' || resumePlaying || started) hls.loadSource(manifest());
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
  stopWaiting();
  refresh();
}

function onMetadata() {
  // A time past the end, or one of a stream that is live, means nothing here.
  if (resumeAt > 0 && resumeAt < video.duration && Number.isFinite(video.duration)) seek(resumeAt);
  resumeAt = 0;
  chooseTextTrack();
}

// A player that gets no more media may wait for it without a word. While it
// does, the gate is asked now and then whether it still lets the viewer in.
let stallTimer = 0;

function onWaiting() {
  showBusy(true);
  clearTimeout(stallTimer);
  stallTimer = setTimeout(checkStall, STALL_TIMEOUT);
}

async function checkStall() {
  const timer = stallTimer;
  const refusal = await askWhy();
  if (timer !== stallTimer || failing || failure) return;
  if (refusal) giveUp(refusal);
  else stallTimer = setTimeout(checkStall, STALL_TIMEOUT);
}

function stopWaiting() {
  showBusy(false);
  clearTimeout(stallTimer);
  stallTimer = 0;
}
