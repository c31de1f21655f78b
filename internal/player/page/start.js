applyOptions();
setUpControls();
setUpMenus();
setUpPreview();
notifyOfMedia();
video.addEventListener('play', onPlay);
video.addEventListener('loadedmetadata', onMetadata);
video.addEventListener('waiting', () => showBusy(true));
for (const name of ['playing', 'seeked', 'canplay']) video.addEventListener(name, () => showBusy(false));
video.addEventListener('progress', () => { progressEvents++; });
for (const name of ['pause', 'ended']) video.addEventListener(name, onPause);
video.addEventListener('error', () => { if (video.error) fail(); });
window.addEventListener('message', onMessage);
window.addEventListener('online', () => { if (failure?.reason === 'network_error') load(); });
setInterval(checkProgress, 1000);
announce();
if (refused) {
  show(refused);
} else {
  watchExpiry();
  load();
}
