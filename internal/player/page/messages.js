// Messages with the page that embeds this one. frame-ancestors decides which page
// that may be: a page that may not embed this one never gets it to run.

const MESSAGE_TYPE = 'signed-playback';
const TIMEUPDATE_INTERVAL = 250; // milliseconds
const embedder = window.parent === window ? null : window.parent;

// A message must not reach a page other than the one that it is meant for, so
// there is none until that page's origin is known. The browser's own word
// comes first. The referrer may name whoever else has led the frame here; a
// message sent to that origin is then dropped by the browser. A command, at
// the latest, tells.
let embedderOrigin = nameable(location.ancestorOrigins?.[0]) || nameable(referrerOrigin());

function nameable(origin) {
  return origin && origin !== 'null' ? origin : '';
}

function referrerOrigin() {
  try {
    return new URL(document.referrer).origin;
  } catch {
    return '';
  }
}

function post(message) {
  if (!embedder || !embedderOrigin) return;
  try {
    embedder.postMessage({ type: MESSAGE_TYPE, ...message }, embedderOrigin);
  } catch {
    // The origin is of a scheme that cannot be addressed.
  }
}

function notify(event, detail = {}) {
  post({ event, ...detail });
}

const isNumber = (min, max) => (value) => typeof value === 'number' && value >= min && value <= max;
const isBoolean = (value) => typeof value === 'boolean';

const METHODS = {
  play: () => play(),
  pause,
  load: () => {
    if (!failure) rememberPlace();
    load();
  },
};

const READABLE = {
  currentTime: () => (video.readyState > 0 ? video.currentTime : resumeAt),
  duration: () => video.duration,
  paused: () => video.paused,
  ended: () => video.ended,
  seeking: () => video.seeking,
  volume: () => video.volume,
  muted: () => video.muted,
  playbackRate: () => video.playbackRate,
  loop: () => video.loop,
  readyState: () => video.readyState,
  videoWidth: () => video.videoWidth,
  videoHeight: () => video.videoHeight,
  error: () => failure && { reason: failure.reason, status: failure.status },
};

const WRITABLE = {
  currentTime: { want: 'a number of seconds', valid: isNumber(0, Number.MAX_SAFE_INTEGER), set: setCurrentTime },
  volume: { want: 'a number from 0 to 1', valid: isNumber(0, 1) },
  playbackRate: { want: 'a number from 0.25 to 4', valid: isNumber(0.25, 4), set: setPlaybackRate },
  muted: { want: 'a boolean', valid: isBoolean },
  loop: { want: 'a boolean', valid: isBoolean },
};

function setCurrentTime(seconds) {
  if (video.readyState > 0) {
    seek(seconds);
  } else {
    resumeAt = seconds;
  }
}

// The default survives a reload of the video.
function setPlaybackRate(rate) {
  video.defaultPlaybackRate = video.playbackRate = rate;
}

function callMethod(name) {
  if (typeof name !== 'string' || !Object.hasOwn(METHODS, name)) throw new TypeError('there is no such method');
  return METHODS[name]();
}

function setProperties(values) {
  if (typeof values !== 'object' || values === null) throw new TypeError('set wants an object');
  const names = Object.keys(values);
  // All or none.
  for (const name of names) {
    if (!Object.hasOwn(WRITABLE, name)) throw new TypeError('there is no such property to set');
    if (!WRITABLE[name].valid(values[name])) throw new RangeError(`${name} must be ${WRITABLE[name].want}`);
  }
  for (const name of names) {
    if (WRITABLE[name].set) WRITABLE[name].set(values[name]);
    else video[name] = values[name];
  }
  return getProperties(names);
}

function getProperties(names) {
  if (!Array.isArray(names) || names.length > 32) throw new TypeError('get wants an array of names');
  return Object.fromEntries(names.map((name) => {
    if (typeof name !== 'string' || !Object.hasOwn(READABLE, name)) throw new TypeError('there is no such property');
    return [name, READABLE[name]()];
  }));
}

const COMMANDS = { method: callMethod, set: setProperties, get: getProperties };

async function execute(message) {
  const members = Object.keys(message).filter((name) => name !== 'type' && name !== 'id');
  if (members.length !== 1 || !Object.hasOwn(COMMANDS, members[0])) {
    throw new TypeError('a command is one of method, set and get');
  }
  return COMMANDS[members[0]](message[members[0]]);
}

const isID = (id) => Number.isFinite(id) || (typeof id === 'string' && id.length <= 64);

async function onMessage({ data, origin, source }) {
  if (!embedder || source !== embedder || !nameable(origin)) return;
  if (typeof data !== 'object' || data === null || data.type !== MESSAGE_TYPE) return;
  if (data.id !== undefined && !isID(data.id)) return;
  embedderOrigin = origin;
  let answer;
  try {
    answer = { result: (await execute(data)) ?? null };
  } catch (error) {
    answer = { error: { name: error.name, message: error.message } };
  }
  if (data.id !== undefined) post({ id: data.id, ...answer });
}

const time = () => ({ currentTime: video.currentTime });
const DETAILS = {
  play: time,
  playing: time,
  pause: time,
  ended: time,
  seeking: time,
  seeked: time,
  waiting: time,
  volumechange: () => ({ volume: video.volume, muted: video.muted }),
  ratechange: () => ({ playbackRate: video.playbackRate }),
  durationchange: () => ({ duration: video.duration }),
  loadedmetadata: () => ({ duration: video.duration, videoWidth: video.videoWidth, videoHeight: video.videoHeight }),
};

function notifyOfMedia() {
  for (const [name, detail] of Object.entries(DETAILS)) {
    video.addEventListener(name, () => notify(name, detail()));
  }
  let last = -Infinity;
  video.addEventListener('timeupdate', () => {
    const now = performance.now();
    if (now - last < TIMEUPDATE_INTERVAL) return;
    last = now;
    notify('timeupdate', time());
  });
}
