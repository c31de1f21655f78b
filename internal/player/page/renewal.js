// A new token for the same video, which the embedding page hands over before or after the
// old one has expired.

const EXPIRY_NOTICE = 60_000; // milliseconds
const LONGEST_TIMER = 2 ** 31 - 1; // milliseconds
let expiryTimer = 0;
let renewals = 0;
let isRenewing = false; // the player starts again, and the embedding page hears nothing of that

// sessionBelow returns the session of this page as it is below another token of the same viewer,
// or '' if that token has another viewer, who begins a session of their own.
async function sessionBelow(link) {
  if (!session) return '';
  try {
    const response = await fetch(`${link}${session}renew`, { cache: 'no-store', referrer: link + pageName });
    const answer = response.ok ? await response.json() : {};
    return /^~[\w-]{32}$/.test(answer.session) ? `${answer.session}/` : '';
  } catch {
    return '';
  }
}

// renew has all later requests use the new token. If the gate refuses that token, the old one
// stays in use.
async function renew(token) {
  const next = baseWith(token);
  // Any site may embed the page of a refusal. So the gate has to decide again, and to see who
  // embeds the page.
  if (refused) return { reopen: true };
  const current = ++renewals;
  const nextSession = await sessionBelow(next);
  const refusal = await askWhy(next, nextSession);
  if (current !== renewals) throw new DOMException('another token has come', 'AbortError');
  if (refusal && refusal.reason !== 'http_error') {
    throw Object.assign(new DOMException(`the token is refused: ${refusal.reason}`, 'DataError'), refusal);
  }
  formerBases.push(base);
  base = next;
  const goesOn = !session === !nextSession;
  session = nextSession;
  // The gate compares the address of this page, in the referrer, with the token of a request.
  history.replaceState(history.state, '', base + pageName + location.search + location.hash);
  watchExpiry();
  if (failure) load();
  else if (failing || !hls || !goesOn) restart();
  return null;
}

// restart loads the video again and goes on where it was. The browser's own player needs that,
// because it keeps the token with which it has begun.
function restart() {
  if (video.readyState > 0) coverVideo();
  video.defaultPlaybackRate = video.playbackRate;
  rememberPlace();
  load();
}

// coverVideo shows the last picture until there is one again.
function coverVideo() {
  const still = document.createElement('canvas');
  [still.width, still.height] = [video.videoWidth, video.videoHeight];
  still.getContext('2d').drawImage(video, 0, 0);
  video.after(still);
  isRenewing = true;
  const shown = new AbortController();
  const uncover = () => {
    if (!video.error && (resumeAt > 0 || video.seeking || video.readyState < HTMLMediaElement.HAVE_CURRENT_DATA)) return;
    isRenewing = false;
    still.remove();
    shown.abort();
  };
  for (const name of ['loadeddata', 'seeked', 'playing', 'error']) video.addEventListener(name, uncover, shown);
}

// watchExpiry tells the embedding page in time that the token expires.
function watchExpiry() {
  clearTimeout(expiryTimer);
  const left = Number(claimsOf(credentialOf(base)).exp) * 1000 - Date.now() - EXPIRY_NOTICE;
  if (left <= LONGEST_TIMER) expiryTimer = setTimeout(notify, Math.max(left, 0), 'tokenexpiring');
}
