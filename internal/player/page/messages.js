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

// notify tells the embedding page of an event, and of all that it can read without a question.
function notify(event, detail = {}) {
  post({ event, ...getProperties(Object.keys(READABLE)), ...detail });
}

// The embedding page learns from `page` whether another document has loaded in the iframe.
function announce() {
  notify('ready', { page: performance.timeOrigin });
}

const isNumber = (min, max) => (value) => typeof value === 'number' && value >= min && value <= max;
const isBoolean = (value) => typeof value === 'boolean';

const METHODS = {
  connect: announce,
  play: () => play(),
  pause,
  load: () => {
    if (!failure) rememberPlace();
    load();
  },
};

const ranges = (list) => Array.from({ length: list.length }, (_, i) => [list.start(i), list.end(i)]);

// No property names an address, because an address contains the token.
const READABLE = {
  autoplay: () => options.autoplay,
  buffered: () => ranges(video.buffered),
  controls: () => options.controls,
  currentTime: () => (video.readyState > 0 ? video.currentTime : resumeAt),
  defaultTextTrack: () => options.textTrack,
  duration: () => video.duration,
  ended: () => video.ended,
  error: () => failure && { reason: failure.reason, status: failure.status },
  letterboxColor: () => options.letterboxColor,
  loop: () => video.loop,
  muted: () => video.muted,
  paused: () => video.paused,
  playbackRate: () => video.playbackRate,
  played: () => ranges(video.played),
  preload: () => options.preload,
  primaryColor: () => options.primaryColor,
  readyState: () => video.readyState,
  seeking: () => video.seeking,
  videoHeight: () => video.videoHeight,
  videoWidth: () => video.videoWidth,
  volume: () => video.volume,
};

// option is a property that is also an option of the query. '' takes it back.
const option = (name, want, read, apply) => ({
  want,
  valid: (value) => typeof value === 'string' && (value === '' || read(value) !== ''),
  set: (value) => {
    options[name] = read(value);
    apply(options[name]);
  },
});

const WRITABLE = {
  autoplay: { want: 'a boolean', valid: isBoolean, set: setAutoplay },
  controls: { want: 'a boolean', valid: isBoolean, set: setControls },
  currentTime: { want: 'a number of seconds', valid: isNumber(0, Number.MAX_SAFE_INTEGER), set: setCurrentTime },
  defaultTextTrack: option('textTrack', 'a language tag', readLanguage, chooseTextTrack),
  letterboxColor: option('letterboxColor', 'a CSS color', readColor, (value) => root.style.setProperty('--letterbox', value)),
  loop: { want: 'a boolean', valid: isBoolean },
  muted: { want: 'a boolean', valid: isBoolean },
  playbackRate: { want: 'a number from 0.25 to 4', valid: isNumber(0.25, 4), set: setPlaybackRate },
  poster: option('poster', 'an http or https URL', readURL, (value) => { video.poster = value; }),
  preload: { want: 'none, metadata or auto', valid: (value) => PRELOADS.includes(value), set: setPreload },
  primaryColor: option('primaryColor', 'a CSS color', readColor, (value) => root.style.setProperty('--primary', value)),
  volume: { want: 'a number from 0 to 1', valid: isNumber(0, 1) },
};

function setAutoplay(value) {
  options.autoplay = value;
  if (value && !started) play().catch(() => {}); // as a media element does
}

function setControls(value) {
  options.controls = value;
  refresh();
}

function setPreload(value) {
  options.preload = video.preload = value;
  if (!hls || value === 'none') return;
  if (value === 'auto') hls.config.maxMaxBufferLength = 600;
  if (!hls.url) hls.loadSource(manifest());
}

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
  return getProperties(names.filter((name) => Object.hasOwn(READABLE, name)));
}

function getProperties(names) {
  if (!Array.isArray(names) || names.length > 32) throw new TypeError('get wants an array of names');
  return Object.fromEntries(names.map((name) => {
    if (typeof name !== 'string' || !Object.hasOwn(READABLE, name)) throw new TypeError('there is no such property');
    return [name, READABLE[name]()];
  }));
}

const COMMANDS = { method: callMethod, set: setProperties, get: getProperties, renew };

async function execute(message) {
  const members = Object.keys(message).filter((name) => name !== 'type' && name !== 'id');
  if (members.length !== 1 || !Object.hasOwn(COMMANDS, members[0])) {
    throw new TypeError('a command is one of method, set, get and renew');
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
    const { name, message, reason, status } = error;
    answer = { error: { name, message, reason, status } };
  }
  if (data.id !== undefined) post({ id: data.id, ...answer });
}

const EVENTS = [
  'abort', 'canplay', 'canplaythrough', 'durationchange', 'ended', 'loadeddata', 'loadedmetadata', 'loadstart', 'pause', 'play',
  'playing', 'progress', 'ratechange', 'resize', 'seeked', 'seeking', 'stalled', 'suspend', 'volumechange', 'waiting',
];

function notifyOfMedia() {
  const tell = ({ type }) => { if (!isRenewing) notify(type); };
  for (const name of EVENTS) video.addEventListener(name, tell);
  let last = -Infinity;
  video.addEventListener('timeupdate', (event) => {
    const now = performance.now();
    if (now - last < TIMEUPDATE_INTERVAL) return;
    last = now;
    tell(event);
  });
}
