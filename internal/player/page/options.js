// The elements of the page, and the options of its query.

const [video, titleBar, busy, toggle, failureBox] =
  ['video', 'title', 'busy', 'toggle', 'failure'].map((id) => document.getElementById(id));

const PRELOADS = ['none', 'metadata', 'auto'];

// Anybody can write a link to this page, so each option is taken only in the form
// that is expected of it, and none ever becomes markup.
function readOptions(query) {
  const flag = (name) => ['', 'true', '1'].includes(query.get(name));
  return {
    title: readTitle(query.get('title')),
    poster: readURL(query.get('poster')),
    storyboard: readURL(query.get('storyboard')) && query.get('storyboard'), // relative to the token of the moment
    autoplay: flag('autoplay'),
    muted: flag('muted'),
    loop: flag('loop'),
    controls: !['false', '0'].includes(query.get('controls')),
    preload: PRELOADS.find((value) => value === query.get('preload')) ?? 'metadata',
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
  video.muted = options.muted;
  video.loop = options.loop;
  video.preload = options.preload;
  root.lang = language;
  document.title = options.title || TEXTS.video;
  video.setAttribute('aria-label', document.title);
  titleBar.textContent = options.title;
  if (options.primaryColor) root.style.setProperty('--primary', options.primaryColor);
  if (options.letterboxColor) root.style.setProperty('--letterbox', options.letterboxColor);
  video.textTracks.addEventListener?.('addtrack', chooseTextTrack);
}

// Tracks come one by one, so each lets the page choose the best one again, until the
// video has started: from then on the choice is the viewer's.
function chooseTextTrack() {
  if (!options.textTrack || started) return;
  const tracks = captionTracks();
  const speaks = (track, tag) => track.language.toLowerCase() === tag.toLowerCase();
  const [spoken] = options.textTrack.split('-');
  const best = tracks.find((track) => speaks(track, options.textTrack)) ??
    tracks.find((track) => speaks({ language: track.language.split('-')[0] }, spoken));
  if (best) showTrack(best);
}
