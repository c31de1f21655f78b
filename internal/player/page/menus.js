// The menus for captions, speed and quality.

const SPEEDS = [0.5, 0.75, 1, 1.25, 1.5, 1.75, 2];

// MENUS lists what each menu offers. A menu without a choice is not shown.
const MENUS = { captions: captionItems, speed: speedItems, quality: qualityItems };

const captionTracks = () => [...video.textTracks].filter(({ kind }) => kind === 'subtitles' || kind === 'captions');

function showTrack(chosen) {
  for (const track of captionTracks()) track.mode = track === chosen ? 'showing' : 'disabled';
}

function captionItems() {
  const tracks = captionTracks();
  if (tracks.length === 0) return [];
  return [null, ...tracks].map((track) => ({
    text: track ? track.label || languageName(track.language) : TEXTS.off,
    checked: track ? track.mode === 'showing' : tracks.every(({ mode }) => mode !== 'showing'),
    choose: () => showTrack(track),
  }));
}

function languageName(tag) {
  try {
    return new Intl.DisplayNames([language], { type: 'language' }).of(tag);
  } catch {
    return tag || TEXTS.captions;
  }
}

const speedName = (rate) => `${new Intl.NumberFormat(language).format(rate)}×`;

function speedItems() {
  if (isLive()) return [];
  return SPEEDS.map((rate) => ({
    text: rate === 1 ? TEXTS.normal : speedName(rate),
    checked: rate === video.playbackRate,
    choose: () => setPlaybackRate(rate),
  }));
}

function qualityName({ height, bitrate }, levels) {
  const megabits = new Intl.NumberFormat(language, { maximumSignificantDigits: 2 }).format(bitrate / 1e6);
  if (!height) return `${megabits} Mbit/s`;
  return levels.filter((level) => level.height === height).length > 1 ? `${height}p, ${megabits} Mbit/s` : `${height}p`;
}

function qualityItems() {
  const levels = hls?.levels ?? [];
  if (levels.length < 2) return [];
  const current = levels[hls.currentLevel];
  const automatic = {
    text: current && hls.autoLevelEnabled ? `${TEXTS.auto} (${qualityName(current, levels)})` : TEXTS.auto,
    checked: hls.autoLevelEnabled,
    choose: () => { hls.nextLevel = -1; },
  };
  const items = levels.map((level, i) => ({
    text: qualityName(level, levels),
    checked: hls.manualLevel === i,
    choose: () => { hls.nextLevel = i; },
  }));
  return [automatic, ...items.reverse()]; // hls.js begins with the lowest
}

const menuOf = (name) => document.getElementById(`${name}-menu`);
const openMenu = () => document.querySelector('[popover]:popover-open');

function closeMenus() {
  openMenu()?.hidePopover();
}

// refreshMenus shows the buttons of the menus that have something to choose.
function refreshMenus() {
  for (const [name, items] of Object.entries(MENUS)) document.getElementById(name).hidden = items().length === 0;
  const speed = document.getElementById('speed');
  speed.textContent = speedName(video.playbackRate);
  label(speed, `${TEXTS.speed}: ${speed.textContent}`);
  document.getElementById('captions').classList.toggle('on', captionTracks().some(({ mode }) => mode === 'showing'));
}

function fillMenu(menu, items) {
  menu.replaceChildren(...items.map(({ text, checked, choose }) => {
    const item = document.createElement('button');
    item.type = 'button';
    item.role = 'menuitemradio';
    item.tabIndex = -1;
    item.dir = 'auto';
    item.textContent = text;
    item.setAttribute('aria-checked', checked);
    item.addEventListener('click', () => {
      choose();
      closeMenus();
      refreshMenus();
    });
    return item;
  }));
}

function onMenuKey(event) {
  const items = [...event.currentTarget.children];
  const at = items.indexOf(document.activeElement);
  const next = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
  event.stopPropagation(); // the keys of the video rest
  wake();
  if (event.key === 'Tab') closeMenus();
  if (next === undefined) return;
  event.preventDefault();
  items.at(next % items.length).focus();
}

function setUpMenus() {
  for (const [name, text] of [['captions', TEXTS.captions], ['speed', TEXTS.speed], ['quality', TEXTS.quality]]) {
    const menu = menuOf(name);
    label(document.getElementById(name), text);
    menu.setAttribute('aria-label', text);
    menu.addEventListener('keydown', onMenuKey);
    menu.addEventListener('beforetoggle', ({ newState }) => { if (newState === 'open') fillMenu(menu, MENUS[name]()); });
    menu.addEventListener('toggle', ({ newState }) => {
      if (newState === 'open') (menu.querySelector('[aria-checked=true]') ?? menu.firstChild)?.focus();
    });
  }
  for (const name of ['addtrack', 'removetrack', 'change']) video.textTracks.addEventListener?.(name, refreshMenus);
  for (const name of ['loadedmetadata', 'durationchange', 'ratechange', 'emptied']) video.addEventListener(name, refreshMenus);
  refreshMenus();
}
