// QR codes (ISO/IEC 18004) of byte mode and error correction level L. The code is made in the
// page, so no other program gets the link.

/** For each version from 1 on: error correction bytes of a block, and blocks. */
const eccBytes = [7, 10, 15, 20, 26, 18, 20, 24, 30, 18, 20, 24, 26, 30, 22, 24, 28, 30, 28, 28, 28, 28, 30, 30, 26, 28, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30]
const blockCounts = [1, 1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 4, 6, 6, 6, 6, 7, 8, 8, 9, 9, 10, 12, 12, 12, 13, 14, 15, 16, 17, 18, 19, 19, 20, 21, 22, 24, 25]

/** Products in the field GF(256) of the polynomial 0x11d. */
function multiply(a, b) {
	let product = 0
	for (let bit = 7; bit >= 0; bit--) product = (product << 1) ^ ((product >> 7) * 0x11d) ^ (((b >> bit) & 1) * a)
	return product
}

/** The remainder of a division by the generator polynomial of a degree: the error correction bytes. */
function correction(bytes, degree) {
	const generator = new Array(degree).fill(0)
	generator[degree - 1] = 1
	for (let i = 0, root = 1; i < degree; i++, root = multiply(root, 2)) {
		for (let j = 0; j < degree; j++) generator[j] = multiply(generator[j], root) ^ (generator[j + 1] ?? 0)
	}
	const rest = new Array(degree).fill(0)
	for (const byte of bytes) {
		const factor = byte ^ rest.shift()
		rest.push(0)
		generator.forEach((coefficient, i) => { rest[i] ^= multiply(coefficient, factor) })
	}
	return rest
}

/** The centres of the alignment patterns on one axis. */
function alignment(version) {
	if (version === 1) return []
	const count = Math.floor(version / 7) + 2, size = version * 4 + 17
	const step = Math.floor((version * 8 + count * 3 + 5) / (count * 4 - 4)) * 2
	return [6, ...Array.from({ length: count - 1 }, (_, i) => size - 7 - i * step).reverse()]
}

/** How many bits the modules of a version have for data and error correction. */
function rawBits(version) {
	const count = version > 1 ? Math.floor(version / 7) + 2 : 0
	return (16 * version + 128) * version + 64 - (count ? (25 * count - 10) * count - 55 : 0) - (version > 6 ? 36 : 0)
}

/** The bytes of a code: header, text, padding, and error correction, interleaved by blocks. */
function codewords(text, version) {
	const blocks = blockCounts[version - 1], degree = eccBytes[version - 1]
	const total = Math.floor(rawBits(version) / 8), capacity = total - blocks * degree
	const bits = []
	const push = (value, length) => { for (let i = length - 1; i >= 0; i--) bits.push((value >> i) & 1) }
	push(4, 4)
	push(text.length, version < 10 ? 8 : 16)
	text.forEach(byte => push(byte, 8))
	push(0, Math.min(4, capacity * 8 - bits.length))
	while (bits.length % 8) bits.push(0)
	const bytes = []
	for (let i = 0; i < bits.length; i += 8) bytes.push(bits.slice(i, i + 8).reduce((byte, bit) => byte << 1 | bit, 0))
	for (let pad = 0xec; bytes.length < capacity; pad ^= 0xec ^ 0x11) bytes.push(pad)
	const short = Math.floor(capacity / blocks), longFrom = blocks - capacity % blocks
	const parts = []
	for (let i = 0, at = 0; i < blocks; i++) {
		const part = bytes.slice(at, at += short + (i >= longFrom ? 1 : 0))
		parts.push([part, correction(part, degree)])
	}
	const interleaved = kind => Array.from({ length: short + 1 + degree }, (_, i) => parts.map(part => part[kind][i])).flat().filter(byte => byte !== undefined)
	return [...interleaved(0), ...interleaved(1)]
}

/** The remainder of BCH codes of format and version. */
function bch(value, degree, polynomial) {
	let rest = value
	for (let i = 0; i < degree; i++) rest = (rest << 1) ^ ((rest >> (degree - 1)) * polynomial)
	return value << degree | rest
}

/** Sets the patterns by which readers find and read a code. fixed has the modules that are no data. */
function drawPatterns(version, set) {
	const size = version * 4 + 17
	for (let i = 0; i < size; i++) { set(6, i, i % 2 === 0); set(i, 6, i % 2 === 0) }
	for (const [cx, cy] of [[3, 3], [size - 4, 3], [3, size - 4]]) {
		for (let y = -4; y <= 4; y++) for (let x = -4; x <= 4; x++) {
			const ring = Math.max(Math.abs(x), Math.abs(y))
			set(cx + x, cy + y, ring !== 2 && ring !== 4)
		}
	}
	const centres = alignment(version), last = centres.length - 1
	centres.forEach((cx, i) => centres.forEach((cy, j) => {
		if (i === 0 && j === 0 || i === 0 && j === last || i === last && j === 0) return
		for (let y = -2; y <= 2; y++) for (let x = -2; x <= 2; x++) set(cx + x, cy + y, Math.max(Math.abs(x), Math.abs(y)) !== 1)
	}))
	if (version > 6) {
		const bits = bch(version, 12, 0x1f25)
		for (let i = 0; i < 18; i++) {
			const bit = (bits >> i & 1) === 1, a = size - 11 + i % 3, b = Math.floor(i / 3)
			set(a, b, bit)
			set(b, a, bit)
		}
	}
	// Level L with mask 0.
	const format = bch(1 << 3, 10, 0x537) ^ 0x5412, bit = i => (format >> i & 1) === 1
	for (let i = 0; i < 15; i++) {
		const a = i < 6 ? i : i < 8 ? i + 1 : 14 - i
		if (i < 8) set(8, a, bit(i))
		else set(i === 8 ? 7 : a, 8, bit(i))
		if (i < 8) set(size - 1 - i, 8, bit(i))
		else set(8, size - 15 + i, bit(i))
	}
	set(8, size - 8, true)
}

/** Returns the modules of the code of a text, row by row, or null if the text is too long. */
export function qrModules(text) {
	const bytes = [...new TextEncoder().encode(text)]
	let version = 1
	const fits = () => Math.floor(rawBits(version) / 8) - blockCounts[version - 1] * eccBytes[version - 1] >= bytes.length + (version < 10 ? 2 : 3)
	while (version <= 40 && !fits()) version++
	if (version > 40) return null
	const size = version * 4 + 17
	const modules = Array.from({ length: size }, () => new Array(size).fill(false)), fixed = modules.map(row => [...row])
	drawPatterns(version, (x, y, dark) => {
		if (x < 0 || y < 0 || x >= size || y >= size) return
		modules[y][x] = dark
		fixed[y][x] = true
	})
	const data = codewords(bytes, version)
	let at = 0
	for (let right = size - 1; right > 0; right -= right === 8 ? 3 : 2) {
		const upward = (right + 1 & 2) === 0
		for (let i = 0; i < size; i++) for (const x of [right, right - 1]) {
			const y = upward ? size - 1 - i : i
			if (fixed[y][x]) continue
			const bit = at < data.length * 8 && (data[at >> 3] >> (7 - (at & 7)) & 1) === 1
			at++
			modules[y][x] = bit !== ((x + y) % 2 === 0)
		}
	}
	return modules
}

/** Returns the code of a text as an image, or null if the text is too long. */
export function qrCode(text, label) {
	const modules = qrModules(text)
	if (!modules) return null
	const svg = (tag, attributes) => {
		const element = document.createElementNS('http://www.w3.org/2000/svg', tag)
		for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value)
		return element
	}
	const side = modules.length + 8
	const image = svg('svg', { viewBox: `0 0 ${side} ${side}`, role: 'img', 'aria-label': label, class: 'qr', 'shape-rendering': 'crispEdges' })
	const path = modules.flatMap((row, y) => row.map((dark, x) => dark ? `M${x + 4} ${y + 4}h1v1h-1z` : '')).join('')
	image.append(svg('rect', { width: side, height: side, fill: '#fff' }), svg('path', { d: path, fill: '#000' }))
	return image
}
