// The package token is the one with which the gate itself signs and verifies.
// Run it beside key.json: go run . <video> <viewer>
package main

import (
	"fmt"
	"log"
	"os"
	"time"

	"github.com/signed-playback/caddy-signed-playback/token"
)

func main() {
	data, err := os.ReadFile("key.json")
	if err != nil {
		log.Fatal(err)
	}
	key, err := token.ParseSigningKey(data, "")
	if err != nil {
		log.Fatal(err)
	}
	expires := time.Now().Add(12 * time.Hour)
	compact, err := token.Sign(token.Claims{VideoID: os.Args[1], Viewer: os.Args[2], ExpiresAt: expires}, key)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("https://media.example.com/%s/manifest/video.m3u8\n", compact)
}
