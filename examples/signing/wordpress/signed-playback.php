<?php
/**
 * Plugin Name: Signed Playback
 * Description: [signed_playback video="demo"] shows a video to users who are logged in.
 */
// In wp-config.php, with the file that `caddy signed-playback keygen -o` writes, outside of the web server's folder:
//   define('SIGNED_PLAYBACK_KEY_FILE', '/etc/playback/key.json');
//   define('SIGNED_PLAYBACK_URL', 'https://media.example.com');
defined('ABSPATH') || exit;

add_shortcode('signed_playback', function ($attributes) {
    // A page cache would give the URL of one user to others.
    defined('DONOTCACHEPAGE') || define('DONOTCACHEPAGE', true);
    if (!is_user_logged_in()) {
        return '<p><a href="' . esc_url(wp_login_url(get_permalink())) . '">Log in to watch this video.</a></p>';
    }
    $base64url = fn ($data) => rtrim(strtr(base64_encode($data), '+/', '-_'), '=');
    $key = json_decode(file_get_contents(SIGNED_PLAYBACK_KEY_FILE));
    $video = shortcode_atts(['video' => ''], $attributes)['video'];
    $claims = ['sub' => $video, 'uid' => (string) get_current_user_id(), 'iat' => time(), 'exp' => time() + 12 * HOUR_IN_SECONDS];
    $signed = $base64url(wp_json_encode(['alg' => 'RS256', 'kid' => $key->id])) . '.' . $base64url(wp_json_encode($claims));
    if (!openssl_sign($signed, $signature, base64_decode($key->pem), OPENSSL_ALGO_SHA256)) {
        return '';
    }
    $url = SIGNED_PLAYBACK_URL . "/$signed." . $base64url($signature) . '/iframe';
    return '<iframe src="' . esc_url($url) . '" width="640" height="360" allow="autoplay; fullscreen" allowfullscreen></iframe>';
});
