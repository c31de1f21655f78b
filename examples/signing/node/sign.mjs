// With jose: npm install jose
// Run it beside key.json: node sign.mjs <video> <viewer>
import { readFileSync } from 'node:fs';
import { SignJWT, importJWK } from 'jose';

const { id, jwk } = JSON.parse(readFileSync('key.json', 'utf8'));
const key = await importJWK(JSON.parse(atob(jwk)), 'RS256');

const [video, viewer] = process.argv.slice(2);
const token = await new SignJWT({ sub: video, uid: viewer })
	.setProtectedHeader({ alg: 'RS256', kid: id })
	.setIssuedAt()
	.setExpirationTime('12h')
	.sign(key);
console.log(`https://media.example.com/${token}/manifest/video.m3u8`);
