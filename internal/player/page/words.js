// The texts that viewers read.

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

function explain({ reason, status }) {
  if (Object.hasOwn(WORDS, reason)) return WORDS[reason];
  if (status === 404 || status === 410) return 'This video does not exist, or it has been removed.';
  if (status === 401 || status === 403) return 'You may not play this video.';
  if (status >= 500 || status === 429) return LATER;
  return 'This video cannot be played.';
}
