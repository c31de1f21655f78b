// Searches search.json, which the build writes: sections of all pages with the words of the query.
const search = document.querySelector('search');
const input = search.querySelector('input');
const results = search.querySelector('output');
let loading; // the sections, from the first search on
search.hidden = false; // there is no search without this script

const load = () => loading ??= fetch(new URL('search.json', document.currentScript?.src ?? document.querySelector('script[src$="search.js"]').src))
	.then(response => response.json())
	.then(sections => sections.map(section => ({ ...section, title: `${section.page} ${section.heading}`.toLowerCase(), words: section.text.toLowerCase() })));

// A section must have all words. A word in the heading counts more than many in the text.
function rank(section, words) {
	let total = 0;
	for (const word of words) {
		const inText = section.words.split(word).length - 1;
		const inTitle = section.heading.toLowerCase().includes(word) ? 20 : section.title.includes(word) ? 5 : 0;
		if (!inText && !inTitle) return 0;
		total += inTitle + Math.min(inText, 5);
	}
	return total;
}

// The text around the first of the words, which it marks.
function excerpt(section, words) {
	const at = Math.max(0, Math.min(...words.map(word => section.words.indexOf(word)).filter(at => at >= 0)));
	const start = Math.max(0, (Number.isFinite(at) ? at : 0) - 40);
	const text = section.text.slice(start, start + 160);
	const small = document.createElement('small');
	const word = words.find(word => text.toLowerCase().includes(word));
	if (!word) return small.append(text), small;
	const found = text.toLowerCase().indexOf(word);
	const mark = document.createElement('mark');
	mark.append(text.slice(found, found + word.length));
	small.append(text.slice(0, found), mark, text.slice(found + word.length));
	return small;
}

async function show() {
	const words = input.value.toLowerCase().split(/\s+/).filter(word => word.length > 1);
	if (words.length === 0) return results.replaceChildren();
	const sections = await load();
	const found = sections.map(section => [rank(section, words), section]).filter(([points]) => points).sort(([a], [b]) => b - a);
	const base = new URL('.', document.querySelector('script[src$="search.js"]').src);
	const links = found.slice(0, 12).map(([, section]) => {
		const link = document.createElement('a');
		link.href = new URL(section.url, base);
		link.append(section.heading === section.page ? section.page : `${section.page}: ${section.heading}`, excerpt(section, words));
		return link;
	});
	const none = document.createElement('p');
	none.append('No section has all these words.');
	results.replaceChildren(...(links.length ? links : [none]));
}

input.addEventListener('input', show);
input.addEventListener('focus', load, { once: true });
search.addEventListener('keydown', event => {
	if (event.key === 'Escape') {
		input.value = '';
		results.replaceChildren();
	} else if (event.key === 'Enter' && event.target === input) {
		results.querySelector('a')?.click();
	}
});
