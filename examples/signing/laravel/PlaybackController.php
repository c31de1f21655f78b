<?php
// GET /playback/demo answers {"url": …} to a user who is logged in. In routes/web.php:
//   Route::get('/playback/{video}', PlaybackController::class)->middleware('auth');
// and in config/services.php, with the file that `caddy signed-playback keygen -o` writes:
//   'signed_playback' => ['key_file' => env('SIGNED_PLAYBACK_KEY_FILE'), 'url' => env('SIGNED_PLAYBACK_URL')],
namespace App\Http\Controllers;

use Illuminate\Http\Request;

class PlaybackController
{
    public function __invoke(Request $request, string $video)
    {
        // If users may not watch all videos, check here that this user may: Gate::authorize('watch', $video).
        $key = json_decode(file_get_contents(config('services.signed_playback.key_file')));
        $viewer = (string) $request->user()->getAuthIdentifier();
        $claims = ['sub' => $video, 'uid' => $viewer, 'iat' => time(), 'exp' => time() + 12 * 60 * 60];
        $signed = $this->base64url(json_encode(['alg' => 'RS256', 'kid' => $key->id])) . '.' . $this->base64url(json_encode($claims));
        throw_unless(openssl_sign($signed, $signature, base64_decode($key->pem), OPENSSL_ALGO_SHA256));
        $url = config('services.signed_playback.url') . "/$signed." . $this->base64url($signature) . '/manifest/video.m3u8';
        return response()->json(['url' => $url])->header('Cache-Control', 'no-store');
    }

    private function base64url(string $data): string
    {
        return rtrim(strtr(base64_encode($data), '+/', '-_'), '=');
    }
}
