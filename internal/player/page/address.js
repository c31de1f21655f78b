// The addresses of the page and of what it loads. They contain the viewer's token, which
// the embedding page may renew.

const root = document.documentElement;

// The page is at <base>iframe, or at <base> with or without its final slash, and does not
// know what comes before. The origin is spelled out, because a path that begins with two
// slashes would name another host.
const pageName = /[^/]\/iframe$/.test(location.pathname) ? 'iframe' : '';
let base = location.origin + location.pathname.slice(0, location.pathname.length - pageName.length).replace(/\/?$/, '/');
const formerBases = []; // with tokens that have been renewed

// With sessions on, the page plays in one session, which is a folder below the base.
let session = root.dataset.session ? `${root.dataset.session}/` : '';

// The gate answers a refused request for the page with the page, and with the reason.
const refused = root.dataset.refused && { reason: root.dataset.refused, status: Number(root.dataset.status) };

const manifestBelow = (link, inSession = session) => link + inSession + root.dataset.manifest;
const manifest = () => manifestBelow(base);

// renewed returns an address that hls.js has learned, with the token of today.
function renewed(url) {
  const former = formerBases.find((link) => url.startsWith(link));
  if (!former) return url;
  const path = url.slice(former.length);
  const below = path.replace(/^~[\w-]{32}\//, '');
  return base + (below === path ? '' : session) + below;
}

const credentialOf = (link) => link.split('/').at(-2);

// claimsOf returns the claims of a token, which only the gate can verify. A video id has
// none but itself.
function claimsOf(credential) {
  const parts = credential.split('.');
  if (parts.length !== 3) return { sub: credential };
  try {
    const bytes = Uint8Array.from(atob(parts[1].replaceAll('-', '+').replaceAll('_', '/')), (c) => c.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(bytes)) ?? {};
  } catch {
    return {};
  }
}

// baseWith returns the base with another token for the same video.
function baseWith(text) {
  const token = typeof text === 'string' ? text.trim() : ''; // files and answers end with a line break
  if (!/^[\w-]+\.[\w-]+\.[\w-]+$/.test(token)) throw new TypeError('renew needs a signed token');
  const credential = credentialOf(base);
  if (claimsOf(token).sub !== claimsOf(credential).sub) throw new DOMException('the token is for another video', 'DataError');
  return base.slice(0, -credential.length - 1) + token + '/';
}
