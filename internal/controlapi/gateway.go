package controlapi

import (
	"encoding/json"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/strictjson"
)

// RefusalHours is how many hours the list of refusals has.
const RefusalHours = 24

// Refusals are the refusals that this node has counted since a time, by hour.
type Refusals struct {
	Since time.Time     `json:"since"`
	Hours []RefusalHour `json:"hours"` // RefusalHours, the oldest first
}

// RefusalHour has the numbers of an hour by reason. A reason that did not occur is not in them.
type RefusalHour struct {
	Start       time.Time         `json:"start"`
	Refused     map[string]uint64 `json:"refused"`
	WouldRefuse map[string]uint64 `json:"wouldRefuse"` // in report-only mode
}

// Gateway describes the running config to pages and scripts that adapt to it.
type Gateway struct {
	Version          string          `json:"version"`
	PublicURL        string          `json:"publicURL"` // "" for none
	Gates            []Gate          `json:"gates"`
	Sessions         bool            `json:"sessions"`
	MaxSession       int64           `json:"maxSession"`       // seconds, 0 for none
	MaxTokenLifetime int64           `json:"maxTokenLifetime"` // the same
	Databases        map[string]bool `json:"databases"`        // by the fact that they tell
	Defaults         Defaults        `json:"defaults"`
}

// Gate is a gate of the running config.
type Gate struct {
	Playback string   `json:"playback"` // comes before /<token>, "" if it is not known
	Hosts    []string `json:"hosts"`    // of the site, empty for any
	Manifest string   `json:"manifest"` // escaped, relative to the video
	Player   bool     `json:"player"`
}

// Defaults are the settings of videos without settings of their own.
type Defaults struct {
	RequireSignedURLs bool            `json:"requireSignedURLs"`
	AllowedOrigins    []string        `json:"allowedOrigins"`
	AccessRules       json.RawMessage `json:"accessRules"` // null for none
}

// describeGateway describes the running config.
func (c *call) describeGateway(strictjson.Value) (any, error) {
	g, err := c.Gateway()
	if err != nil {
		return nil, err
	}
	g.Gates = append([]Gate{}, g.Gates...)
	g.Sessions, g.MaxSession = c.Sessions != nil, int64(c.MaxSession.Seconds())
	g.PublicURL, g.MaxTokenLifetime = c.PublicURL, int64(c.Policy.MaxLifetime.Seconds())
	g.Defaults.RequireSignedURLs, g.Defaults.AllowedOrigins = c.Defaults.RequireSignedURLs, append([]string{}, c.Defaults.AllowedOrigins...)
	return g, nil
}

// listRefusals lists the refusals of the last hours.
func (c *call) listRefusals(strictjson.Value) (any, error) { return c.Refusals(), nil }

// ExplainedRequest is a request of a viewer that the gate decides on and does not serve.
type ExplainedRequest struct {
	URL             string // a secret, because it has a token
	IP              string // of the viewer
	Origin, Referer string // "" for a header that is not sent
	At              time.Time
}

// explain says why the gate allows or refuses a request.
func (c *call) explain(body strictjson.Value) (any, error) {
	asked := ExplainedRequest{At: c.Now()}
	if address := c.ClientAddress(c.request); address.IsValid() {
		asked.IP = address.String()
	}
	err := members{
		"url":     secretMember("url", &asked.URL),
		"ip":      secretMember("ip", &asked.IP),
		"origin":  secretMember("origin", &asked.Origin),
		"referer": secretMember("referer", &asked.Referer),
		"at": member("at", &asked.At, func(v strictjson.Value) (time.Time, bool) {
			text, _ := v.Text()
			at, err := time.Parse(time.RFC3339, text)
			_, inAnswer := at.UTC().MarshalText() // its year may have five digits there
			return at, err == nil && inAnswer == nil
		}, "a date like 2026-01-02T15:04:05Z"),
	}.read(body)
	if err != nil {
		return nil, err
	}
	found, err := c.Explain(c.ctx(), asked)
	if err != nil {
		return nil, badRequest("%v", err)
	}
	return found, nil
}
