// GET /api/playback/demo answers {"url": …} to a user who is logged in. In .env, with the file that
// `caddy signed-playback keygen -o` writes:
//   SIGNED_PLAYBACK_KEY_FILE=/etc/playback/key.json
//   SIGNED_PLAYBACK_URL=https://media.example.com
import { readFileSync } from 'node:fs';
import { SignJWT, importJWK } from 'jose';
import { auth } from '@/auth'; // of Auth.js, or a function of your own that returns { user: { id } }

export async function GET(request, { params }) {
	const session = await auth();
	if (!session?.user) {
		return Response.json({ error: 'log in first' }, { status: 401 });
	}
	const { video } = await params;
	// If users may not watch all videos, check here that this user may watch this video.
	const { id, jwk } = JSON.parse(readFileSync(process.env.SIGNED_PLAYBACK_KEY_FILE, 'utf8'));
	const token = await new SignJWT({ sub: video, uid: session.user.id })
		.setProtectedHeader({ alg: 'RS256', kid: id })
		.setIssuedAt()
		.setExpirationTime('12h')
		.sign(await importJWK(JSON.parse(atob(jwk)), 'RS256'));
	const url = `${process.env.SIGNED_PLAYBACK_URL}/${token}/manifest/video.m3u8`;
	return Response.json({ url }, { headers: { 'Cache-Control': 'no-store' } });
}
