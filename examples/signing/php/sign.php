<?php
// With the extensions openssl and json, which PHP has by itself. With Composer's firebase/php-jwt, which no
// test of this project runs, the token is JWT::encode($claims, base64_decode($key->pem), 'RS256', $key->id).
// Run it beside key.json: php sign.php <video> <viewer>
$key = json_decode(file_get_contents('key.json'));

function base64url(string $data): string
{
    return rtrim(strtr(base64_encode($data), '+/', '-_'), '=');
}

[, $video, $viewer] = $argv;
$header = ['alg' => 'RS256', 'kid' => $key->id];
$claims = ['sub' => $video, 'uid' => $viewer, 'iat' => time(), 'exp' => time() + 12 * 60 * 60];
$signed = base64url(json_encode($header)) . '.' . base64url(json_encode($claims));
if (!openssl_sign($signed, $signature, base64_decode($key->pem), OPENSSL_ALGO_SHA256)) {
    exit(openssl_error_string());
}
echo "https://media.example.com/$signed." . base64url($signature) . "/manifest/video.m3u8\n";
