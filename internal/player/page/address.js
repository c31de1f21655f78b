// The addresses of the page and of what it loads. They contain the viewer's token, which
// the embedding page may renew.

const root = document.documentElement;

// The page is at <base>iframe, or at <base> with or without its final slash, and does not
// know what comes before. The origin is spelled out, because a path that begins with two
// slashes would name another host.
const pageName = /[^/]\/iframe$/.test(location.pathname) ? 'iframe' : '';
let base = location.origin + location.pathname.slice(0, location.pathname.length - pageName.length).replace(/\/?$/, '/');

const manifest = () => base + root.dataset.manifest;
