// With jsonwebtoken: npm install jsonwebtoken
// Run it beside key.json: node sign.js <video> <viewer>
const { readFileSync } = require('node:fs');
const { sign } = require('jsonwebtoken');

const { id, pem } = JSON.parse(readFileSync('key.json', 'utf8'));

const [video, viewer] = process.argv.slice(2);
const claims = { sub: video, uid: viewer }; // sign adds iat
const token = sign(claims, atob(pem), { algorithm: 'RS256', keyid: id, expiresIn: '12h' });
console.log(`https://media.example.com/${token}/manifest/video.m3u8`);
