(() => {
  'use strict';

  const root = document.documentElement;
  const [video, titleBar, busy, toggle, failureBox] =
    ['video', 'title', 'busy', 'toggle', 'failure'].map((id) => document.getElementById(id));

  // The page stands at <base>iframe, or at <base> without its final slash, and
  // does not know what comes before. The origin is spelled out, for a path that
  // begins with two slashes would name another host.
  const path = location.pathname;
  const base = location.origin + (/[^/]\/iframe$/.test(path) ? path.slice(0, -'iframe'.length) : path.replace(/\/?$/, '/'));
  const manifest = base + 'manifest/video.m3u8';

  const NATIVE_TYPE = 'application/vnd.apple.mpegurl';
  const CONNECT_TIMEOUT = 15_000;
  const STALL_TIMEOUT = 10_000;
  const TIMEUPDATE_INTERVAL = 250;

  // ---- Options of the query -------------------------------------------------
  // Whoever links to this page writes them, so each is taken only in the form
  // that is expected of it, and none ever becomes markup.

  function readOptions(query) {
    const flag = (name) => ['', 'true', '1'].includes(query.get(name));
    return {
      title: readTitle(query.get('title')),
      poster: readURL(query.get('poster')),
      autoplay: flag('autoplay'),
      muted: flag('muted'),
      loop: flag('loop'),
      controls: !['false', '0'].includes(query.get('controls')),
      preload: ['none', 'metadata', 'auto'].find((value) => value === query.get('preload')) ?? 'metadata',
      startTime: readTime(query.get('startTime')),
      textTrack: readLanguage(query.get('defaultTextTrack')),
      primaryColor: readColor(query.get('primaryColor')),
      letterboxColor: readColor(query.get('letterboxColor')),
    };
  }

  function readTitle(text) {
    return (text ?? '').replace(/[\p{Cc}\p{Zl}\p{Zp}]+/gu, ' ').trim().slice(0, 200);
  }

  function readURL(text) {
    if (!text || text.length > 8192) return '';
    try {
      const url = new URL(text, base);
      return ['http:', 'https:'].includes(url.protocol) ? url.href : '';
    } catch {
      return '';
    }
  }

  // Seconds, or hours, minutes and seconds as in 1h2m3s.
  function readTime(text) {
    const seconds = /^\d{1,7}(\.\d{1,6})?$/;
    const units = /^(?=\d)(?:(\d{1,4})h)?(?:(\d{1,6})m)?(?:(\d{1,7}(?:\.\d{1,6})?)s)?$/;
    if (seconds.test(text ?? '')) return Number(text);
    const [, h = 0, m = 0, s = 0] = units.exec(text ?? '') ?? [];
    return Number(h) * 3600 + Number(m) * 60 + Number(s);
  }

  function readLanguage(text) {
    if (!text || text.length > 64) return '';
    try {
      return Intl.getCanonicalLocales(text)[0];
    } catch {
      return '';
    }
  }

  // CSS.supports alone would let var() and the global keywords pass.
  function readColor(text) {
    const form = /^(#[0-9a-f]{3,8}|[a-z]{3,32}|(rgb|hsl)a?\([^()]{1,64}\)|(hwb|lab|lch|oklab|oklch|color)\([^()]{1,64}\))$/i;
    const keywords = /^(inherit|initial|unset|revert|currentcolor)$/i;
    return text && form.test(text) && !keywords.test(text) && CSS.supports('color', text) ? text : '';
  }

  const options = readOptions(new URLSearchParams(location.search));

  function applyOptions() {
    video.controls = options.controls;
    video.muted = options.muted;
    video.loop = options.loop;
    video.preload = options.preload;
    if (options.poster) video.poster = options.poster;
    if (options.title) {
      document.title = options.title;
      video.setAttribute('aria-label', options.title);
      titleBar.textContent = options.title;
    }
    if (options.primaryColor) root.style.setProperty('--primary', options.primaryColor);
    if (options.letterboxColor) root.style.setProperty('--letterbox', options.letterboxColor);
    video.textTracks.addEventListener?.('addtrack', chooseTextTrack);
  }

  // Tracks come one by one, so the best one is chosen anew with each, until the
  // video has started: from then on the choice is the viewer's.
  function chooseTextTrack() {
    if (!options.textTrack || started) return;
    const tracks = [...video.textTracks].filter(({ kind }) => kind === 'subtitles' || kind === 'captions');
    const speaks = (track, tag) => track.language.toLowerCase() === tag.toLowerCase();
    const [language] = options.textTrack.split('-');
    const best = tracks.find((track) => speaks(track, options.textTrack)) ??
      tracks.find((track) => speaks({ language: track.language.split('-')[0] }, language));
    if (!best) return;
    for (const track of tracks) track.mode = track === best ? 'showing' : 'disabled';
  }

  // ---- What is on the screen -------------------------------------------------

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

  // ---- Playback --------------------------------------------------------------

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
      video.src = manifest;
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
    if (options.preload !== 'none' || resumePlaying || started) hls.loadSource(manifest);
  }

  function onPlay() {
    started = wantsPlay = true;
    if (hls) {
      hls.config.maxMaxBufferLength = 600;
      if (!hls.url) hls.loadSource(manifest);
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

  // ---- Refusals and other failures -------------------------------------------

  const NEW_LINK = 'Ask for a new one where you found it.';
  const BROKEN_LINK = `This link is not valid. ${NEW_LINK}`;
  const SITE = 'This video may not be shown on this site.';
  const LATER = 'This video is not available right now. Try again in a moment.';

  const WORDS = {
    path_invalid: BROKEN_LINK,
    token_malformed: BROKEN_LINK,
    algorithm_not_allowed: BROKEN_LINK,
    key_unknown: BROKEN_LINK,
    signature_invalid: BROKEN_LINK,
    token_lifetime_exceeded: BROKEN_LINK,
    audience_not_allowed: BROKEN_LINK,
    rules_invalid: BROKEN_LINK,
    token_required: 'This video can only be played with a link made for you. Ask for one where you found it.',
    token_expired: `This link has expired. ${NEW_LINK}`,
    token_not_yet_valid: 'This link is not valid yet. Try again later.',
    rule_blocked: 'This video cannot be played in your country or network.',
    client_ip_unknown: 'This video cannot be played over your connection.',
    origin_required: SITE,
    origin_not_allowed: SITE,
    download_not_allowed: 'This video may not be downloaded.',
    manifest_invalid: 'This video cannot be played because something is wrong with it.',
    too_early: LATER,
    verification_limited: 'Too many viewers came at once. Try again in a moment.',
    state_unavailable: LATER,
    country_unavailable: LATER,
    network_error: 'The connection failed. Check that you are online, and try again.',
    unsupported: 'This browser cannot play this video. Try another one.',
    media_error: 'Something went wrong while this video was loading. Try again.',
  };

  const RETRY_REASONS = ['token_not_yet_valid', 'network_error', 'media_error'];
  const RETRY_STATUSES = [425, 429, 500, 502, 503, 504];

  function explain({ reason, status }) {
    if (Object.hasOwn(WORDS, reason)) return WORDS[reason];
    if (status === 404 || status === 410) return 'This video does not exist, or it has been removed.';
    if (status === 401 || status === 403) return 'You may not play this video.';
    if (status >= 500 || status === 429) return LATER;
    return 'This video cannot be played.';
  }

  const canRetry = ({ reason, status }) =>
    RETRY_REASONS.includes(reason) || (RETRY_STATUSES.includes(status) && reason !== 'manifest_invalid');

  // askWhy returns why the manifest is refused, or null if it is not. Media
  // elements and scripts do not tell; a cached manifest would not know.
  async function askWhy() {
    try {
      const response = await fetch(manifest, { cache: 'no-store', signal: AbortSignal.timeout?.(CONNECT_TIMEOUT) });
      response.body?.cancel().catch(() => {});
      if (response.ok) return null;
      const reason = response.headers.get('Signed-Playback-Reason') ?? '';
      return { reason: /^[a-z_]{1,64}$/.test(reason) ? reason : 'http_error', status: response.status };
    } catch {
      return { reason: 'network_error', status: 0 };
    }
  }

  // fail finds out why playback failed and says so.
  async function fail() {
    if (failing || failure) return;
    failing = true;
    const current = attempt;
    const refusal = await askWhy();
    if (current !== attempt) return;
    failing = false;
    if (!refusal && native && hasHLSJS) {
      // The browser has promised more than it can do.
      native = false;
      rememberPlace();
      load();
      return;
    }
    giveUp(refusal ?? { reason: 'media_error', status: 0 });
  }

  function giveUp(why) {
    rememberPlace();
    show(why);
  }

  function show(why) {
    failure = why;
    stopWaiting();
    video.pause();
    hls?.destroy();
    hls = null;
    leaveFullscreen();
    const words = document.createElement('p');
    words.textContent = explain(why);
    const code = document.createElement('small');
    code.textContent = why.status ? `${why.reason} (${why.status})` : why.reason;
    failureBox.replaceChildren(words, ...(canRetry(why) ? [retryButton()] : []), code);
    refresh();
    notify('error', { reason: why.reason, status: why.status });
  }

  function retryButton() {
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = 'Try again';
    button.addEventListener('click', () => {
      load();
      (toggle.hidden ? video : toggle).focus();
    });
    return button;
  }

  // In fullscreen a video element covers what stands beside it.
  function leaveFullscreen() {
    if (document.fullscreenElement === video) document.exitFullscreen().catch(() => {});
    if (video.webkitDisplayingFullscreen) video.webkitExitFullscreen();
  }

  // ---- Messages with the page that embeds this one ---------------------------
  // Who that may be is decided by frame-ancestors: a page that may not embed
  // this one never gets it to run.

  const MESSAGE_TYPE = 'signed-playback';
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
    pause: () => video.pause(),
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

  // ---- Start -----------------------------------------------------------------

  applyOptions();
  notifyOfMedia();
  toggle.addEventListener('click', togglePlay);
  document.addEventListener('keydown', onKey);
  video.addEventListener('click', () => { if (!options.controls) togglePlay(); });
  video.addEventListener('play', onPlay);
  video.addEventListener('loadedmetadata', onMetadata);
  video.addEventListener('waiting', onWaiting);
  video.addEventListener('playing', stopWaiting);
  for (const name of ['pause', 'ended']) video.addEventListener(name, onPause);
  video.addEventListener('error', () => { if (video.error) fail(); });
  window.addEventListener('message', onMessage);
  window.addEventListener('online', () => { if (failure?.reason === 'network_error') load(); });
  load();
})();
