// The texts that viewers read and hear, in the first of the browser's languages that
// words.json has.

const language = [...navigator.languages, 'en']
  .map((tag) => tag.split('-')[0].toLowerCase())
  .find((tag) => Object.hasOwn(WORDS.texts, tag));
const TEXTS = WORDS.texts[language];

// explain returns why nothing plays.
function explain({ reason, status }) {
  if (Object.hasOwn(WORDS.reasons, reason)) return TEXTS[WORDS.reasons[reason]];
  if (status === 404 || status === 410) return TEXTS.video_missing;
  if (status === 401 || status === 403) return TEXTS.forbidden;
  if (status >= 500 || status === 429) return TEXTS.later;
  return TEXTS.unplayable;
}
