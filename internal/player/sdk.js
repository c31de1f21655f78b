// The player SDK, for pages that embed the player page. Stream(iframe) returns an object with
// the properties, methods and events of Cloudflare Stream's player.
(function () {
  'use strict';

  const TYPE = 'signed-playback';
  const ANSWER_TIMEOUT = 10000; // milliseconds, after the iframe has loaded

  // The properties, with their values before the player page has told its own.
  const WRITABLE = {
    autoplay: false, controls: true, currentTime: 0, defaultTextTrack: '', letterboxColor: '', loop: false,
    muted: false, playbackRate: 1, poster: '', preload: 'metadata', primaryColor: '', volume: 1,
  };
  const READ_ONLY = {
    buffered: [], duration: NaN, ended: false, error: null, paused: true, played: [], readyState: 0, seeking: false,
    videoHeight: 0, videoWidth: 0,
  };

  // Values are converted as those of a media element are.
  const CONVERT = {
    boolean: Boolean,
    number: Number,
    string: (value) => (value === undefined || value === null ? '' : String(value)),
  };
  const PRELOAD = { true: 'auto', false: 'none' };

  const players = new WeakMap(); // by iframe
  let lastID = Math.floor(Math.random() * 1e9); // another copy of this script may talk to the same iframe

  // Connection exchanges messages with the player page in an iframe, whichever document of it
  // is there at the time.
  class Connection {
    constructor(iframe, player) {
      this.iframe = iframe;
      this.player = player;
      this.state = Object.assign({}, READ_ONLY, WRITABLE);
      this.assigned = {}; // what this page has set, for each document that loads in the iframe
      this.setting = {}; // property → its last command, until that is answered
      this.calls = new Map(); // id → {message, origin, resolve, reject} of a command that has not been answered
      this.page = null; // names the document in the iframe, once it is ready
      this.left = null; // names one that has to go
      this.answered = false; // since the iframe has loaded
      this.onMessage = this.onMessage.bind(this);
      iframe.addEventListener('load', () => this.onLoad());
      window.addEventListener('message', this.onMessage);
      // The player page may have said before that it is ready. A message to the empty document
      // of an iframe that has not loaded would be an error in the console.
      if (iframe.contentDocument === null || this.origin() === location.origin) this.post({ method: 'connect' });
    }

    origin() {
      return new URL(this.iframe.src, location.href).origin;
    }

    // post sends a message, which may contain a token. The browser drops it if another site
    // is in the iframe.
    post(message) {
      if (!this.iframe.contentWindow || this.origin() === 'null') return;
      this.iframe.contentWindow.postMessage(Object.assign({ type: TYPE }, message), this.origin());
    }

    // call sends a command to this document or, if this one does not answer, to the next.
    call(command) {
      lastID++;
      const message = Object.assign({ id: lastID }, command);
      return new Promise((resolve, reject) => {
        this.calls.set(message.id, { message, origin: this.origin(), resolve, reject });
        if (this.page !== null) this.post(message);
      });
    }

    assign(name, value) {
      const before = this.state[name];
      this.state[name] = this.assigned[name] = value;
      if (this.page === null) return;
      const command = this.setting[name] = this.call({ set: { [name]: value } });
      const isLast = () => this.setting[name] === command && delete this.setting[name];
      command.then((values) => {
        if (isLast()) this.merge(values);
      }, (error) => {
        if (!isLast()) return;
        console.warn(`Stream: ${error.message}`);
        this.state[name] = before;
        delete this.assigned[name];
      });
    }

    merge(values) {
      for (const name of Object.keys(this.state)) {
        if (name in values && !(name in this.setting)) this.state[name] = values[name];
      }
    }

    dispatch(name, detail) {
      this.player.dispatchEvent(new CustomEvent(name, { detail }));
    }

    onMessage({ data, source, origin }) {
      if (!this.iframe.isConnected) {
        window.removeEventListener('message', this.onMessage); // until the iframe loads again
        return;
      }
      if (source !== this.iframe.contentWindow || origin !== this.origin()) return;
      if (typeof data !== 'object' || data === null || data.type !== TYPE) return;
      if (data.event === undefined) {
        this.onAnswer(data);
      } else if (data.event === 'ready') {
        this.onReady(data);
      } else {
        this.merge(data);
        this.dispatch(data.event, data.event === 'error' ? { reason: data.reason, status: data.status } : null);
      }
    }

    onReady(message) {
      if (message.page === this.left) return;
      this.answered = true;
      if (message.page === this.page) {
        this.merge(message);
        return;
      }
      this.page = message.page;
      this.setting = {};
      this.merge(message);
      for (const [id, call] of this.calls) {
        // A token is for the site at which it has been handed over.
        const isForeign = 'renew' in call.message && call.origin !== this.origin();
        if (isForeign) call.reject(new DOMException('the iframe shows another site', 'AbortError'));
        if (isForeign || call.message.set) this.calls.delete(id);
      }
      for (const name of Object.keys(this.assigned)) this.assign(name, this.assigned[name]);
      delete this.assigned.currentTime; // the next document has its own
      for (const call of this.calls.values()) {
        if (!call.message.set) this.post(call.message);
      }
      if (this.state.error) this.dispatch('error', this.state.error);
    }

    // leave has commands wait for the next document.
    leave() {
      this.left = this.page;
      this.page = null;
    }

    onAnswer({ id, result, error }) {
      const call = this.calls.get(id);
      if (!call) return;
      this.calls.delete(id);
      if (error) {
        const { name, message, reason, status } = error;
        call.reject(Object.assign(new DOMException(message, name), { reason, status }));
        return;
      }
      call.resolve(result);
    }

    onLoad() {
      window.addEventListener('message', this.onMessage);
      this.answered = false;
      this.post({ method: 'connect' });
      setTimeout(() => {
        if (!this.answered && this.iframe.isConnected) this.fail();
      }, ANSWER_TIMEOUT);
    }

    // fail tells that the iframe shows something else: the browser's page about an error, or
    // nothing, because the site may not embed the player page.
    fail() {
      this.page = null;
      this.state.error = { reason: 'network_error', status: 0 };
      for (const call of this.calls.values()) {
        call.reject(new DOMException('the iframe does not show the player page', 'InvalidStateError'));
      }
      this.calls.clear();
      this.dispatch('error', this.state.error);
    }
  }

  // The token or video id in the address of a player page.
  const CREDENTIAL = /[^/]+(?=(\/|\/iframe)?$)/;

  class Source {
    constructor(connection) {
      this.connection = connection;
      this.token = ''; // the last one that renewed the link
    }

    get() {
      if (this.token) return this.token;
      const found = CREDENTIAL.exec(new URL(this.connection.iframe.src, location.href).pathname);
      return found ? found[0] : '';
    }

    address(credential) {
      const url = new URL(this.connection.iframe.src, location.href);
      url.pathname = url.pathname.replace(CREDENTIAL, encodeURIComponent(credential));
      return url.href;
    }

    async renew(token) {
      const { connection } = this;
      const answer = await connection.call({ renew: token });
      this.token = token;
      if (answer === null) return;
      // The gate has refused the iframe, and has to decide about it again.
      if (connection.state.currentTime > 0) connection.assigned.currentTime = connection.state.currentTime;
      connection.leave();
      connection.iframe.contentWindow.location.replace(this.address(token));
    }

    // set renews the link if it can, and else loads another video.
    set(value) {
      if (value === this.get()) return;
      const address = /^https?:\/\//.test(value) ? value : this.address(value);
      if (this.connection.page === null) this.open(address);
      else this.renew(value).catch((error) => error.name === 'AbortError' || this.open(address));
    }

    open(address) {
      this.token = '';
      this.connection.leave();
      this.connection.iframe.src = address;
    }
  }

  function timeRanges(ranges) {
    const at = (index, end) => {
      if (!ranges[index]) throw new DOMException('there is no such range', 'IndexSizeError');
      return ranges[index][end];
    };
    return { length: ranges.length, start: (index) => at(index, 0), end: (index) => at(index, 1) };
  }

  function createPlayer(iframe) {
    const player = new EventTarget();
    const connection = new Connection(iframe, player);
    const source = new Source(connection);
    const define = (name, get, set) => Object.defineProperty(player, name, { get, set, enumerable: true });
    for (const name of Object.keys(READ_ONLY)) {
      const value = Array.isArray(READ_ONLY[name]) ? timeRanges : (state) => state;
      define(name, () => value(connection.state[name]));
    }
    for (const name of Object.keys(WRITABLE)) {
      const convert = CONVERT[typeof WRITABLE[name]];
      define(name, () => connection.state[name], (value) => {
        connection.assign(name, name === 'preload' && value in PRELOAD ? PRELOAD[value] : convert(value));
      });
    }
    define('src', () => source.get(), (value) => source.set(String(value)));
    return Object.assign(player, {
      play: () => connection.call({ method: 'play' }).then(() => {}),
      pause: () => { connection.call({ method: 'pause' }).catch(() => {}); },
      load: () => { connection.call({ method: 'load' }).catch(() => {}); },
      renew: (token) => source.renew(String(token).trim()),
    });
  }

  window.Stream = function Stream(iframe) {
    if (!iframe || !/^iframe$/i.test(iframe.tagName)) throw new TypeError('Stream needs an iframe element');
    if (!players.has(iframe)) players.set(iframe, createPlayer(iframe));
    return players.get(iframe);
  };
}());
