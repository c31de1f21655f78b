package routecheck

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
)

// Fingerprint returns a text that is the same for two configs of a site whose media caches may have
// the same objects. It depends on the handlers, on the values of placeholders in them that another
// process may have otherwise, and on the working directory, because a relative root is below it.
func Fingerprint(handlers []json.RawMessage, resolve func(string) string) (string, error) {
	decoded := make([]any, len(handlers))
	for i, raw := range handlers {
		if err := json.Unmarshal(raw, &decoded[i]); err != nil {
			return "", err
		}
	}
	text, err := json.Marshal(withoutSources(decoded))
	if err != nil {
		return "", err
	}
	outside := resolve(strings.Join(outsideText.FindAllString(string(text), -1), "\n"))
	folder, _ := os.Getwd()
	return fmt.Sprintf("%x", sha256.Sum256(fmt.Append(text, "\n", outside, "\n", folder))), nil
}

// outsideText finds the placeholders of a config whose values another process may have
// otherwise.
var outsideText = regexp.MustCompile(`\{(?:env|file)\.[^{}]*\}`)

// withoutSources returns a part of a JSON config without what does not change objects: the
// places of gates in the Caddyfile, which change with each line before them, and the sizes of
// caches.
func withoutSources(config any) any {
	switch value := config.(type) {
	case []any:
		for i := range value {
			value[i] = withoutSources(value[i])
		}
	case map[string]any:
		switch value["handler"] {
		case "signed_playback":
			delete(value, "source")
		case "signed_playback_cache":
			delete(value, "memory")
			delete(value, "disk")
		}
		for name := range value {
			value[name] = withoutSources(value[name])
		}
	}
	return config
}
