// Why nothing plays: how the page finds out, and how it tells the viewer.

const CONNECT_TIMEOUT = 15_000; // milliseconds
const RETRY_REASONS = ['token_not_yet_valid', 'not_available_yet', 'session_limit', 'session_ended', 'network_error', 'media_error'];
const RETRY_STATUSES = [425, 429, 500, 502, 503, 504];

const canRetry = ({ reason, status }) =>
  RETRY_REASONS.includes(reason) || (RETRY_STATUSES.includes(status) && reason !== 'manifest_invalid');

// askWhy returns why the manifest is refused, or null if it is not. Media
// elements and scripts do not tell; a cached manifest would not know.
async function askWhy(link = base, inSession = session) {
  try {
    const response = await fetch(manifestBelow(link, inSession), {
      // Without its session, a page that has one would begin another.
      method: root.dataset.session && !inSession ? 'HEAD' : 'GET', cache: 'no-store', referrer: link + pageName, signal: AbortSignal.timeout?.(CONNECT_TIMEOUT),
    });
    response.body?.cancel().catch(() => {});
    if (response.ok) return null;
    const reason = response.headers.get('Signed-Playback-Reason') ?? '';
    return { reason: /^[a-z_]{1,64}$/.test(reason) ? reason : 'http_error', status: response.status };
  } catch {
    return { reason: 'network_error', status: 0 };
  }
}

// fail finds out why playback failed and says so, unless the gate has no objection and
// the failure does not persist.
async function fail(persists = () => true) {
  if (failing || failure) return;
  failing = true;
  const current = attempt;
  const refusal = await askWhy();
  if (current !== attempt) return;
  failing = false;
  // A request with the old token may fail after the page has got a new one.
  if (!refusal && base !== loadedBase) return restart();
  if (!refusal && !persists()) return;
  rememberPlace();
  show(refusal ?? { reason: 'media_error', status: 0 });
}

function show(why) {
  failure = why;
  showBusy(false);
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
  button.textContent = TEXTS.retry;
  button.addEventListener('click', () => {
    load();
    (toggle.hidden ? playButton : toggle).focus();
  });
  return button;
}

// In fullscreen a video element covers what stands beside it.
function leaveFullscreen() {
  if (document.fullscreenElement === video) document.exitFullscreen().catch(() => {});
  if (video.webkitDisplayingFullscreen) video.webkitExitFullscreen();
}
