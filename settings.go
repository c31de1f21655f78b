package signedplayback

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/accessrules"
	"github.com/signed-playback/caddy-signed-playback/internal/geo"
	"github.com/signed-playback/caddy-signed-playback/internal/option"
	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
	"github.com/signed-playback/caddy-signed-playback/internal/reportonly"
	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/internal/weborigin"
	"github.com/signed-playback/caddy-signed-playback/internal/worklimit"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// VideoSettings are the settings of one video, or of all videos.
type VideoSettings struct {
	// Whether the video plays with a signed token only. Default: true.
	RequireSignedURLs *bool `json:"require_signed_urls,omitempty"`

	// The sites on which the video may play, as patterns `[*.]host[:port]`: at
	// most 200. A pattern covers http and https. Without a port it covers the
	// default ports, 80 and 443. Permitted:
	//
	//	example.com            the host, without subdomains
	//	example.com:8443       the host on port 8443 only
	//	*.example.com          example.com and all subdomains
	//	localhost:3000         a site under development
	//	192.0.2.1              an IPv4 address
	//	[2001:db8::1]:8443     an IPv6 address in brackets
	//	пример.example         the same host as xn--e1afmkfd.example
	//	*                      every site that names its origin
	//
	// Prohibited:
	//
	//	https://example.com    a scheme
	//	example.com/videos     a path
	//	www.*.example          a wildcard that is not the first label
	//	*.192.0.2.1            a wildcard below an IP address
	//	example.com:*          a wildcard for ports
	//	2001:db8::1            an IPv6 address without brackets
	//
	// Default: any site, also one that does not name its origin.
	AllowedOrigins []string `json:"allowed_origins,omitempty"`

	// Whether a request with neither `Origin` nor `Referer` may play a video that
	// has allowed origins: `deny` or `allow`. Default: `deny`.
	MissingOrigin string `json:"missing_origin,omitempty"`

	// How many playback sessions a viewer may have at a time. The claim `climit` may
	// lower it for a viewer. Default: no limit.
	MaxSessions int `json:"max_sessions,omitempty"`

	// The operator's own access rules, as an array of the same form as the claim
	// `accessRules`. They are evaluated before those of the token, and for requests
	// without a token too. A rule with the action `block` that matches refuses the
	// viewer; one with `allow` ends the list, and then the token's rules decide. The
	// list of a video replaces the one for all videos; an empty list is no rules.
	// Default: none. Permitted:
	//
	//	[{"type": "ip.geoip.asnum", "asn": [64500], "action": "block"}]
	//
	// Prohibited: a rule whose database is not configured.
	AccessRules json.RawMessage `json:"access_rules,omitempty"`

	// From when on a video may be played, in RFC 3339: `2030-01-31T20:00:00Z`, with
	// any offset from UTC. Only for a single video. Default: always.
	AvailableFrom string `json:"available_from,omitempty"`

	// Until when a video may be played: before this time, and no longer at it. No
	// response is fresh beyond it. Only for a single video. Default: for ever.
	AvailableUntil string `json:"available_until,omitempty"`

	// Report-only mode. The setting of a video counts before the setting of its
	// gate, and that before the setting for all videos.
	Enforcement
}

// settings are the compiled VideoSettings. They are immutable.
type settings struct {
	requireSignedURLs bool
	origins           originPolicy
	rules             accessrules.List
	availableFrom     time.Time          // zero for always
	availableUntil    time.Time          // zero for ever
	maxSessions       int                // of a viewer at a time, 0 for no limit
	enforcement       reportonly.Setting // usually unset, so the gate's counts
	purged            int64              // see state.VideoDocument; unknown for a video of the config
}

func (a *App) provisionSettings() (err error) {
	if at := cmp.Or(a.AvailableFrom, a.AvailableUntil); at != "" {
		return fmt.Errorf("available_from and available_until are for single videos, not for all: put %q into a video block", at)
	}
	if a.defaults, err = a.VideoSettings.compile(settings{requireSignedURLs: true}); err != nil {
		return err
	}
	a.enforcement, a.defaults.enforcement = a.defaults.enforcement, reportonly.Setting{}
	a.enforcement.Warn(a.logger, "all gates and videos that do not say otherwise")
	if err := a.checkOwnRules(a.defaults.rules); err != nil {
		return err
	}
	a.videos = make(map[string]settings, len(a.Videos))
	for id, own := range a.Videos {
		if !token.ValidVideoID(id) {
			return fmt.Errorf("video %q: %w", id, playbackpath.ErrVideoID)
		}
		if a.videos[id], err = own.compile(a.defaults); err != nil {
			return fmt.Errorf("video %q: %w", id, err)
		}
		a.videos[id].enforcement.Warn(a.logger, "video "+id)
		if own.AccessRules == nil {
			continue
		}
		if err := a.checkOwnRules(a.videos[id].rules); err != nil {
			return fmt.Errorf("video %q: %w", id, err)
		}
	}
	return nil
}

// checkOwnRules refuses rules of the config that need a database that the config does
// not name, and warns of rules that are probably not meant.
func (a *App) checkOwnRules(rules accessrules.List) error {
	has := func(fact geo.Fact) bool { return a.databases()[fact] != "" }
	if missing := rules.Missing(has); missing != nil {
		return fmt.Errorf("access_rules: %s; set it", strings.Join(missing, "; "))
	}
	for _, warning := range rules.Warnings(has) {
		a.logger.Warn("access_rules: " + warning)
	}
	return nil
}

// compile returns the settings, with defaults for what is not set.
func (v VideoSettings) compile(defaults settings) (settings, error) {
	compiled := defaults
	if v.RequireSignedURLs != nil {
		compiled.requireSignedURLs = *v.RequireSignedURLs
	}
	if len(v.AllowedOrigins) > 0 {
		allowed, err := weborigin.Compile(v.AllowedOrigins)
		if err != nil {
			return settings{}, err
		}
		compiled.origins.allowed = allowed
	}
	if v.AccessRules != nil {
		rules, err := accessrules.Compile(v.AccessRules)
		if err != nil {
			return settings{}, fmt.Errorf("access_rules: %w", err)
		}
		compiled.rules = rules
	}
	if err := compiled.setSchedule(v.AvailableFrom, v.AvailableUntil); err != nil {
		return settings{}, err
	}
	if v.MaxSessions < 0 {
		return settings{}, fmt.Errorf("max_sessions %d: want a positive number", v.MaxSessions)
	}
	compiled.maxSessions = cmp.Or(v.MaxSessions, defaults.maxSessions)
	if v.MissingOrigin != "" {
		allow, err := missingOriginWords.IsSecond(v.MissingOrigin)
		if err != nil {
			return settings{}, err
		}
		compiled.origins.allowMissing = allow
	}
	var err error
	compiled.enforcement, err = v.Enforcement.compile()
	return compiled, err
}

// setSchedule sets when the video may be played. "" leaves a bound out.
func (s *settings) setSchedule(from, until string) (err error) {
	if s.availableFrom, err = parseTimeOption("available_from", from); err != nil {
		return err
	}
	if s.availableUntil, err = parseTimeOption("available_until", until); err != nil {
		return err
	}
	if from != "" && until != "" && !s.availableFrom.Before(s.availableUntil) {
		return fmt.Errorf("available_from %q is not before available_until %q", from, until)
	}
	return nil
}

// parseTimeOption reads the time of an option, "" for the zero time.
func parseTimeOption(option, text string) (at time.Time, err error) {
	if text == "" {
		return time.Time{}, nil
	}
	if at.UnmarshalText([]byte(text)) != nil || at.IsZero() {
		return time.Time{}, fmt.Errorf("%s %q: want a time like 2030-01-31T20:00:00Z", option, text)
	}
	return at, nil
}

var missingOriginWords = option.Words{Option: "missing_origin", First: "deny", Second: "allow"}

const (
	// A network may ask for this many videos at once without a token, and then for
	// so many a second, where the gate must look them up in the store.
	lookupBurst = 1000
	lookupRate  = 100
)

// settings returns the settings of a video: from the config, else from the control
// API with the settings for all videos as defaults. stranger says that the request
// has no valid token. The errors are refusals.
func (a *App) settings(r *http.Request, videoID string, stranger bool) (settings, error) {
	if own, ok := a.videos[videoID]; ok {
		return own, nil
	}
	var video *state.Video
	var err error
	if stranger {
		video, err = a.state.VideoForStranger(r.Context(), videoID, func() error { return a.admitLookup(r) })
	} else {
		video, err = a.state.Video(r.Context(), videoID)
	}
	if errors.Is(err, state.ErrLimited) {
		return settings{}, refusal.VerificationLimited.Because(errLookupsLimited)
	}
	if err != nil {
		return settings{}, refusal.StateUnavailable.Because(errSettingsUnknown)
	}
	return mergeInto(a.defaults, video), nil
}

// mergeInto returns the defaults, replaced by the settings that the control API has. video
// is nil if it has none.
func mergeInto(defaults settings, video *state.Video) settings {
	if video == nil {
		return defaults
	}
	defaults.purged = video.Purged
	if video.RequireSignedURLs != nil {
		defaults.requireSignedURLs = *video.RequireSignedURLs
	}
	if video.OriginsSet {
		defaults.origins.allowed = video.AllowedOrigins
	}
	defaults.availableFrom, defaults.availableUntil = video.AvailableFrom, video.AvailableUntil
	if video.AccessRules != nil {
		defaults.rules = video.AccessRules
	}
	return defaults
}

// admitLookup counts a lookup against the network of a request.
func (a *App) admitLookup(r *http.Request) error {
	client := worklimit.NetworksOf(clientAddress(r))
	if a.lookups.Exhausted(client) {
		return state.ErrLimited
	}
	a.lookups.Spend(client)
	return nil
}

var errLookupsLimited = errors.New("too many requests without a token for videos that have to be looked up; try again in a moment")

var errSettingsUnknown = errors.New("the settings of the video cannot be read, or their object is damaged")
