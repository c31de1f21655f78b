package token_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// apiResponse stands for the `jwk` that the keys API returned once and that the
// back end has kept as a secret since.
func apiResponse() (jwk string) {
	key, err := token.GenerateSigningKey("")
	if err != nil {
		log.Fatal(err)
	}
	if jwk, err = key.JWK(); err != nil {
		log.Fatal(err)
	}
	return jwk
}

// A back end loads the `jwk` of the keys API once and signs a token for each
// viewer. Viewers in the United Kingdom may watch, and nobody else: a viewer that
// no rule matches would be allowed, so the last rule matches everybody.
func ExampleSign() {
	key, err := token.ParseSigningKey([]byte(apiResponse()), "")
	if err != nil {
		log.Fatal(err)
	}
	rules, err := json.Marshal([]token.AccessRule{
		{Type: "ip.geoip.country", Action: "allow", Country: []string{"GB"}},
		{Type: "any", Action: "block"},
	})
	if err != nil {
		log.Fatal(err)
	}
	signed, err := token.Sign(token.Claims{
		VideoID:     "demo",
		ExpiresAt:   time.Now().Add(time.Hour),
		AccessRules: rules,
	}, key)
	if err != nil {
		log.Fatal(err)
	}
	url := "https://videos.example.com/" + signed + "/manifest/video.m3u8"

	fmt.Println(len(url) > len(signed))
	fmt.Printf("%s\n", rules)
	// Output:
	// true
	// [{"type":"ip.geoip.country","action":"allow","country":["GB"]},{"type":"any","action":"block"}]
}

// A back end's test checks that the gate would take its tokens, and that it
// would not take them for ever.
func ExampleVerify() {
	key, err := token.GenerateSigningKey("2027-01")
	if err != nil {
		log.Fatal(err)
	}
	keys, err := token.NewKeySet(key.Public())
	if err != nil {
		log.Fatal(err)
	}
	signed, err := token.Sign(token.Claims{VideoID: "demo", ExpiresAt: time.Now().Add(time.Hour)}, key)
	if err != nil {
		log.Fatal(err)
	}

	claims, err := token.Verify(signed, keys, time.Now(), token.Policy{MaxLifetime: 24 * time.Hour})
	fmt.Println(claims.VideoID, claims.KeyID, err)

	_, err = token.Verify(signed, keys, time.Now().Add(2*time.Hour), token.Policy{})
	fmt.Println(errors.Is(err, token.ErrExpired))
	// Output:
	// demo 2027-01 <nil>
	// true
}
