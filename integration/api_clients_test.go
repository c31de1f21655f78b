package integration

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloudflare/cloudflare-go/v7"
	"github.com/cloudflare/cloudflare-go/v7/option"
	sdk "github.com/cloudflare/cloudflare-go/v7/stream"
	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/token"
)

const (
	apiEmail = "owner@example.com"
	apiKeyOf = "a-key-of-the-owner" // goes with apiEmail
)

// withBothCredentials is for the field api of a config.
const withBothCredentials = withAPI + "\n\t\tauth_key " + apiEmail + " {env.API_KEY}\n\t\taccount " + account

// clientOptions are what a user of an official client puts into it. What is empty
// is left to the client.
type clientOptions struct {
	BaseURL string `json:"baseURL,omitempty"`
	Token   string `json:"apiToken,omitempty"`
	Email   string `json:"apiEmail,omitempty"`
	Key     string `json:"apiKey,omitempty"`
}

func (g *gateway) clientOptions() clientOptions {
	return clientOptions{BaseURL: "http://" + g.api + "/client/v4", Token: apiSecret}
}

// officialClient is one of Cloudflare's SDKs. Parameters and results are in the
// types of that for Go, so that the tests can be the same for all. Errors of the
// API are *clientErrors.
type officialClient interface {
	createKey() (*sdk.Keys, error)
	listKeys() ([]sdk.KeyGetResponse, error)
	deleteKey(id string) (string, error)
	mint(video string, p sdk.TokenNewParams) (string, error)
	edit(video string, p sdk.StreamEditParams) (*sdk.Video, error)
	video(id string) (*sdk.Video, error)
	videos(p sdk.StreamListParams) ([]sdk.Video, error)
	deleteVideo(id string) error
}

// officialClients are the SDKs that must work, with all their defaults.
var officialClients = []struct {
	name    string
	connect func(t testing.TB, c clientOptions) officialClient
}{
	{"TypeScript", connectTypeScript},
	{"Go", connectGo},
}

// clientError is what a client says of a refused call.
type clientError struct {
	Class  string       `json:"class"` // of the error in TypeScript; Go has one for all
	Status int          `json:"status"`
	Errors []apiMessage `json:"errors"`
}

func (e *clientError) Error() string { return fmt.Sprintf("%s %d %v", e.Class, e.Status, e.Errors) }

// goClient calls Cloudflare's Go SDK.
type goClient struct {
	stream *sdk.StreamService
	ctx    context.Context
}

func connectGo(t testing.TB, c clientOptions) officialClient {
	// As cloudflare.NewClient does for this service. To compile that function
	// with its hundred others takes longer than these tests.
	options := cloudflare.DefaultClientOptions()
	if c.BaseURL != "" {
		options = append(options, option.WithBaseURL(c.BaseURL))
	}
	if c.Token != "" {
		options = append(options, option.WithAPIToken(c.Token))
	}
	if c.Email != "" {
		options = append(options, option.WithAPIEmail(c.Email), option.WithAPIKey(c.Key))
	}
	return &goClient{sdk.NewStreamService(options...), t.Context()}
}

// refusal makes a *clientError of what the Go SDK returns.
func refusal(err error) error {
	apiError, ok := errors.AsType[*cloudflare.Error](err)
	if !ok {
		return err
	}
	out := &clientError{Status: apiError.StatusCode}
	for _, e := range apiError.Errors {
		out.Errors = append(out.Errors, apiMessage{int(e.Code), e.Message})
	}
	return out
}

func (c *goClient) createKey() (*sdk.Keys, error) {
	key, err := c.stream.Keys.New(c.ctx, sdk.KeyNewParams{AccountID: cloudflare.F(account)})
	return key, refusal(err)
}

func (c *goClient) listKeys() (keys []sdk.KeyGetResponse, err error) {
	pages := c.stream.Keys.GetAutoPaging(c.ctx, sdk.KeyGetParams{AccountID: cloudflare.F(account)})
	for pages.Next() {
		keys = append(keys, pages.Current())
	}
	return keys, refusal(pages.Err())
}

func (c *goClient) deleteKey(id string) (string, error) {
	result, err := c.stream.Keys.Delete(c.ctx, id, sdk.KeyDeleteParams{AccountID: cloudflare.F(account)})
	if err != nil {
		return "", refusal(err)
	}
	return *result, nil
}

func (c *goClient) mint(video string, p sdk.TokenNewParams) (string, error) {
	p.AccountID = cloudflare.F(account)
	minted, err := c.stream.Token.New(c.ctx, video, p)
	if err != nil {
		return "", refusal(err)
	}
	return minted.Token, nil
}

func (c *goClient) edit(video string, p sdk.StreamEditParams) (*sdk.Video, error) {
	p.AccountID = cloudflare.F(account)
	edited, err := c.stream.Edit(c.ctx, video, p)
	return edited, refusal(err)
}

func (c *goClient) video(id string) (*sdk.Video, error) {
	video, err := c.stream.Get(c.ctx, id, sdk.StreamGetParams{AccountID: cloudflare.F(account)})
	return video, refusal(err)
}

func (c *goClient) videos(p sdk.StreamListParams) (videos []sdk.Video, err error) {
	p.AccountID = cloudflare.F(account)
	pages := c.stream.ListAutoPaging(c.ctx, p)
	for pages.Next() {
		videos = append(videos, pages.Current())
	}
	return videos, refusal(pages.Err())
}

func (c *goClient) deleteVideo(id string) error {
	return refusal(c.stream.Delete(c.ctx, id, sdk.StreamDeleteParams{AccountID: cloudflare.F(account)}))
}

// nodeClient calls Cloudflare's TypeScript SDK, in a process of its own.
type nodeClient struct {
	stdin  io.Writer
	stdout *bufio.Scanner
	stderr *logBuffer
}

func connectTypeScript(t testing.TB, c clientOptions) officialClient {
	t.Helper()
	options, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*startTimeout)
	cmd := exec.CommandContext(ctx, tool(t, "node"), "testdata/cloudflare-client.js", string(options))
	client := &nodeClient{stderr: newLogBuffer()}
	cmd.Stderr = client.stderr
	if client.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	client.stdout = bufio.NewScanner(stdout)
	client.stdout.Buffer(nil, 1<<20)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = cmd.Wait() })
	return client
}

// call does one call and decodes its result unless that is nil.
func (c *nodeClient) call(result any, name string, args ...any) error {
	line, err := json.Marshal(append([]any{name}, args...))
	if err != nil {
		return err
	}
	if _, err := c.stdin.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("calling %s: %w: %s", name, err, c.stderr)
	}
	if !c.stdout.Scan() {
		return fmt.Errorf("calling %s: node has ended: %w: %s", name, c.stdout.Err(), c.stderr)
	}
	var out struct {
		Result json.RawMessage `json:"result"`
		Error  *clientError    `json:"error"`
	}
	if err := json.Unmarshal(c.stdout.Bytes(), &out); err != nil {
		return fmt.Errorf("calling %s: %w: %.200q", name, err, c.stdout.Bytes())
	}
	if out.Error != nil {
		return out.Error
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(out.Result, result)
}

// inAccount is the object that a call in TypeScript takes: the account and the
// members of a body or a query, if there is one.
type inAccount struct{ members json.Marshaler }

func (p inAccount) MarshalJSON() ([]byte, error) {
	object := make(map[string]json.RawMessage)
	if p.members != nil {
		text, err := p.members.MarshalJSON()
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(text, &object); err != nil {
			return nil, err
		}
	}
	object["account_id"] = json.RawMessage(strconv.Quote(account))
	return json.Marshal(object)
}

func (c *nodeClient) createKey() (key *sdk.Keys, err error) {
	err = c.call(&key, "keys.create", inAccount{})
	return key, err
}

func (c *nodeClient) listKeys() (keys []sdk.KeyGetResponse, err error) {
	err = c.call(&keys, "keys.get", inAccount{})
	return keys, err
}

func (c *nodeClient) deleteKey(id string) (result string, err error) {
	err = c.call(&result, "keys.delete", id, inAccount{})
	return result, err
}

func (c *nodeClient) mint(video string, p sdk.TokenNewParams) (string, error) {
	var minted sdk.TokenNewResponse
	err := c.call(&minted, "token.create", video, inAccount{p})
	return minted.Token, err
}

func (c *nodeClient) edit(video string, p sdk.StreamEditParams) (edited *sdk.Video, err error) {
	err = c.call(&edited, "edit", video, inAccount{p})
	return edited, err
}

func (c *nodeClient) video(id string) (video *sdk.Video, err error) {
	err = c.call(&video, "get", id, inAccount{})
	return video, err
}

func (c *nodeClient) videos(p sdk.StreamListParams) (videos []sdk.Video, err error) {
	query := map[string]string{"account_id": account}
	for name, values := range p.URLQuery() {
		query[name] = values[0]
	}
	err = c.call(&videos, "list", query)
	return videos, err
}

func (c *nodeClient) deleteVideo(id string) error {
	return c.call(nil, "delete", id, inAccount{})
}

// With the address, the account and a credential put in, and nothing else, the
// official clients make, list and revoke keys, mint tokens that play, and
// change, read, list and forget the settings of videos.
func TestOfficialClients(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{api: withBothCredentials})
	ways := []struct {
		name string
		with func(t *testing.T) clientOptions
	}{
		{"a token in the environment", func(t *testing.T) clientOptions {
			t.Setenv("CLOUDFLARE_BASE_URL", g.clientOptions().BaseURL)
			t.Setenv("CLOUDFLARE_API_TOKEN", apiSecret)
			return clientOptions{}
		}},
		{"email and key as options", func(*testing.T) clientOptions {
			return clientOptions{BaseURL: g.clientOptions().BaseURL, Email: apiEmail, Key: apiKeyOf}
		}},
	}
	for _, official := range officialClients {
		for _, way := range ways {
			t.Run(official.name+", "+way.name, func(t *testing.T) {
				client := official.connect(t, way.with(t))
				wantKeysManaged(t, client)

				minted, err := client.mint("vid", sdk.TokenNewParams{})
				if err != nil {
					t.Fatal(err)
				}
				o.wantPassed(t, g.get(t, "/"+minted+"/video/1.ts"), "/vid/video/1.ts")

				if _, err := client.edit("vid", sdk.StreamEditParams{Creator: cloudflare.F("me")}); err != nil {
					t.Fatal(err)
				}
				video, err := client.video("vid")
				if err != nil || video.Creator != "me" {
					t.Errorf("got a video by %q: %v", video.Creator, err)
				}
				if ids := listedIDs(t, client, sdk.StreamListParams{}); !slices.Equal(ids, []string{"vid"}) {
					t.Errorf("the videos listed are %q", ids)
				}
				if err := client.deleteVideo("vid"); err != nil {
					t.Error(err)
				}
				if ids := listedIDs(t, client, sdk.StreamListParams{}); len(ids) != 0 {
					t.Errorf("the videos listed are %q once all are deleted", ids)
				}
			})
		}
	}
}

// wantKeysManaged makes, lists and revokes keys where there are none.
func wantKeysManaged(t *testing.T, client officialClient) {
	t.Helper()
	type listed struct {
		ID, KeyID string
		Created   time.Time
	}
	var want []listed // newest first
	for range 2 {
		key, err := client.createKey()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := token.ParseSigningKey([]byte(key.Pem), key.ID); err != nil {
			t.Errorf("pem: %v", err)
		}
		want = slices.Insert(want, 0, listed{key.ID, key.ID, key.Created})
	}
	for {
		keys, err := client.listKeys()
		if err != nil {
			t.Fatal(err)
		}
		var got []listed
		for _, key := range keys {
			got = append(got, listed{key.ID, key.KeyID, key.Created})
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("listed keys (-want +got):\n%s", diff)
		}
		if len(want) == 0 {
			return
		}
		oldest := want[len(want)-1]
		if result, err := client.deleteKey(oldest.ID); err != nil || result != "Revoked" {
			t.Fatalf("deleting a key: %q, %v", result, err)
		}
		want = slices.Delete(want, len(want)-1, len(want))
		if len(want) == 0 {
			want = nil
		}
	}
}

func listedIDs(t *testing.T, client officialClient, p sdk.StreamListParams) (ids []string) {
	t.Helper()
	videos, err := client.videos(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, video := range videos {
		ids = append(ids, video.UID)
	}
	return ids
}

// mintedPayload is the payload of a token that the API has minted: the dates are
// strings there.
type mintedPayload struct {
	VideoID      string          `json:"sub"`
	KeyID        string          `json:"kid"`
	ExpiresAt    int64           `json:"exp,string"`
	NotBefore    int64           `json:"nbf,string"`
	Downloadable bool            `json:"downloadable"`
	AccessRules  json.RawMessage `json:"accessRules"`
}

func payloadOf(t testing.TB, compact string) (p mintedPayload) {
	t.Helper()
	parsed, err := token.Parse(compact)
	if err != nil {
		t.Fatal(err)
	}
	_, text := parsed.Documents()
	dec := json.NewDecoder(strings.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		t.Fatalf("payload %s: %v", text, err)
	}
	return p
}

// Tokens that the official clients have minted say what was asked for, and the
// gate does what they say.
func TestOfficialClientsMint(t *testing.T) {
	o := startOrigin(t, exampleMedia())
	g := start(t, o, config{api: withAPI, app: withCountries(t)})
	key := g.createKey(t)

	now := time.Now().Unix()
	notInUS := []sdk.TokenNewParamsAccessRule{{
		Type:    cloudflare.F(sdk.TokenNewParamsAccessRulesTypeIPGeoipCountry),
		Country: cloudflare.F([]string{"US", "MX"}),
		Action:  cloudflare.F(sdk.TokenNewParamsAccessRulesActionBlock),
	}}
	onlyThere := []sdk.TokenNewParamsAccessRule{{
		Type:   cloudflare.F(sdk.TokenNewParamsAccessRulesTypeIPSrc),
		IP:     cloudflare.F([]string{"127.0.0.1", "2400:cb00::/32"}),
		Action: cloudflare.F(sdk.TokenNewParamsAccessRulesActionAllow),
	}, {
		Type:   cloudflare.F(sdk.TokenNewParamsAccessRulesTypeAny),
		Action: cloudflare.F(sdk.TokenNewParamsAccessRulesActionBlock),
	}}
	refused := verdict{http.StatusForbidden, "download_not_allowed"}
	blocked := verdict{http.StatusForbidden, "rule_blocked"}
	early := verdict{http.StatusUnauthorized, "token_not_yet_valid"}
	cases := []struct {
		name       string
		params     sdk.TokenNewParams
		payload    mintedPayload // without what is not set
		inUS, inGB verdict       // of a manifest, for viewers there
		download   verdict       // of a download, in GB
	}{
		{name: "nothing", inUS: plays, inGB: plays, download: refused},
		{
			name:    "exp",
			params:  sdk.TokenNewParams{Exp: cloudflare.F(now + 12*3600)},
			payload: mintedPayload{ExpiresAt: now + 12*3600},
			inUS:    plays, inGB: plays, download: refused,
		},
		{
			name:    "nbf",
			params:  sdk.TokenNewParams{Nbf: cloudflare.F(now - 60)},
			payload: mintedPayload{NotBefore: now - 60},
			inUS:    plays, inGB: plays, download: refused,
		},
		{
			name:    "exp and nbf to come",
			params:  sdk.TokenNewParams{Exp: cloudflare.F(now + 7200), Nbf: cloudflare.F(now + 3600)},
			payload: mintedPayload{ExpiresAt: now + 7200, NotBefore: now + 3600},
			inUS:    early, inGB: early, download: early,
		},
		{
			name:   "exp and nbf of 0",
			params: sdk.TokenNewParams{Exp: cloudflare.F[int64](0), Nbf: cloudflare.F[int64](0)},
			inUS:   plays, inGB: plays, download: refused,
		},
		{
			name:    "downloadable",
			params:  sdk.TokenNewParams{Downloadable: cloudflare.F(true)},
			payload: mintedPayload{Downloadable: true},
			inUS:    plays, inGB: plays, download: plays,
		},
		{
			name:   "not downloadable, no flags",
			params: sdk.TokenNewParams{Downloadable: cloudflare.F(false), Flags: cloudflare.F(sdk.TokenNewParamsFlags{Original: cloudflare.F(false)})},
			inUS:   plays, inGB: plays, download: refused,
		},
		{
			name:    "accessRules for countries",
			params:  sdk.TokenNewParams{AccessRules: cloudflare.F(notInUS), Downloadable: cloudflare.F(true)},
			payload: mintedPayload{AccessRules: mustMarshal(t, notInUS), Downloadable: true},
			inUS:    blocked, inGB: plays, download: plays,
		},
		{
			name:    "accessRules for addresses",
			params:  sdk.TokenNewParams{AccessRules: cloudflare.F(onlyThere)},
			payload: mintedPayload{AccessRules: mustMarshal(t, onlyThere)},
			inUS:    plays, inGB: blocked, download: blocked,
		},
		{
			name:    "id and pem",
			params:  sdk.TokenNewParams{ID: cloudflare.F(key.ID), Pem: cloudflare.F(key.PEM)},
			payload: mintedPayload{KeyID: key.ID},
			inUS:    plays, inGB: plays, download: refused,
		},
	}
	for _, official := range officialClients {
		t.Run(official.name, func(t *testing.T) {
			client := official.connect(t, g.clientOptions())
			for _, tc := range cases {
				t.Run(tc.name, func(t *testing.T) {
					before := time.Now().Unix()
					compact, err := client.mint("demo", tc.params)
					after := time.Now().Unix()
					if err != nil {
						t.Fatal(err)
					}

					got := payloadOf(t, compact)
					want := tc.payload
					want.VideoID = "demo"
					if want.KeyID == "" && got.KeyID != key.ID {
						want.KeyID = got.KeyID // the gateway's own
					}
					const hour = 3600
					if want.ExpiresAt == 0 && before <= got.ExpiresAt-hour && got.ExpiresAt-hour <= after {
						want.ExpiresAt = got.ExpiresAt
					}
					if want.NotBefore == 0 && before <= got.NotBefore+hour && got.NotBefore+hour <= after {
						want.NotBefore = got.NotBefore
					}
					if diff := cmp.Diff(want, got); diff != "" {
						t.Errorf("payload, minted from %d to %d (-want +got):\n%s", before, after, diff)
					}

					verdicts := []verdict{
						g.getFrom(t, "127.0.0.1", "/"+compact+"/manifest/video.m3u8").verdict(),
						g.getFrom(t, "127.0.0.2", "/"+compact+"/manifest/video.m3u8").verdict(),
						g.getFrom(t, "127.0.0.2", "/"+compact+"/downloads/default.mp4").verdict(),
					}
					if diff := cmp.Diff([]verdict{tc.inUS, tc.inGB, tc.download}, verdicts); diff != "" {
						t.Errorf("in the US, in GB, a download in GB (-want +got):\n%s", diff)
					}
				})
			}
		})
	}
}

func mustMarshal(t testing.TB, value any) json.RawMessage {
	t.Helper()
	data, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// sentSettings are what a client sets of a video.
type sentSettings struct {
	UID                string
	RequireSignedURLs  bool
	AllowedOrigins     []string
	Meta               any
	Creator            string
	Title, Logo        string
	ThumbnailPct       float64
	ScheduledDeletion  time.Time
	UploadExpiry       time.Time
	MaxDurationSeconds int64
}

func sentSettingsOf(v *sdk.Video) sentSettings {
	return sentSettings{
		v.UID, v.RequireSignedURLs, v.AllowedOrigins, v.Meta, v.Creator, v.PublicDetails.Title, v.PublicDetails.Logo,
		v.ThumbnailTimestampPct, v.ScheduledDeletion, v.UploadExpiry, v.MaxDurationSeconds,
	}
}

// What the official clients set of a video, they read back as they have set it;
// what they leave out of a change stays; what they delete is forgotten.
func TestOfficialClientsEdit(t *testing.T) {
	g := start(t, startOrigin(t, nil), config{api: withAPI})
	date := time.Date(2031, 2, 3, 4, 5, 6, 0, time.UTC)
	defaults := sentSettings{UID: "vid", RequireSignedURLs: true, AllowedOrigins: []string{}, Meta: map[string]any{}}
	full := sentSettings{
		UID:                "vid",
		AllowedOrigins:     []string{"example.com", "*.example.org", "localhost:8080"},
		Meta:               map[string]any{"name": "A film", "nested": map[string]any{"year": 1927.0}},
		Creator:            "Fritz",
		Title:              "Metropolis",
		Logo:               "https://example.com/logo.png",
		ThumbnailPct:       0.529241,
		ScheduledDeletion:  date,
		UploadExpiry:       date.Add(time.Hour),
		MaxDurationSeconds: 9180,
	}
	changed := full
	changed.RequireSignedURLs, changed.Creator = true, "Thea"
	undeleted := changed
	undeleted.ScheduledDeletion = time.Time{}
	steps := []struct {
		name   string
		params sdk.StreamEditParams
		want   sentSettings
	}{
		{"nothing", sdk.StreamEditParams{}, defaults},
		{"everything", sdk.StreamEditParams{
			AllowedOrigins:     cloudflare.F(full.AllowedOrigins),
			Creator:            cloudflare.F(full.Creator),
			MaxDurationSeconds: cloudflare.F(full.MaxDurationSeconds),
			Meta:               cloudflare.F(full.Meta),
			PublicDetails: cloudflare.F(sdk.StreamEditParamsPublicDetails{
				Title: cloudflare.F(full.Title), Logo: cloudflare.F(full.Logo),
			}),
			RequireSignedURLs:     cloudflare.F(false),
			ScheduledDeletion:     cloudflare.F(full.ScheduledDeletion),
			ThumbnailTimestampPct: cloudflare.F(full.ThumbnailPct),
			UID:                   cloudflare.F("vid"),
			UploadExpiry:          cloudflare.F(full.UploadExpiry),
		}, full},
		{"some of it", sdk.StreamEditParams{Creator: cloudflare.F("Thea"), RequireSignedURLs: cloudflare.F(true)}, changed},
		{"no deletion", sdk.StreamEditParams{ScheduledDeletion: cloudflare.Null[time.Time]()}, undeleted},
	}
	for _, official := range officialClients {
		t.Run(official.name, func(t *testing.T) {
			client := official.connect(t, g.clientOptions())
			for _, tc := range steps {
				edited, err := client.edit("vid", tc.params)
				if err != nil {
					t.Fatalf("%s: %v", tc.name, err)
				}
				if diff := cmp.Diff(tc.want, sentSettingsOf(edited)); diff != "" {
					t.Errorf("%s, the answer (-want +got):\n%s", tc.name, diff)
				}
				read, err := client.video("vid")
				if err != nil {
					t.Fatalf("%s: %v", tc.name, err)
				}
				if diff := cmp.Diff(tc.want, sentSettingsOf(read)); diff != "" {
					t.Errorf("%s, read again (-want +got):\n%s", tc.name, diff)
				}
			}
			if err := client.deleteVideo("vid"); err != nil {
				t.Fatal(err)
			}
			read, err := client.video("vid")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(defaults, sentSettingsOf(read)); diff != "" {
				t.Errorf("deleted (-want +got):\n%s", diff)
			}
			if !read.Created.IsZero() {
				t.Errorf("a deleted video was created %s", read.Created)
			}
		})
	}
}

// The official clients' lists have the videos that their filters ask for, newest
// first.
func TestOfficialClientsList(t *testing.T) {
	g := start(t, startOrigin(t, nil), config{api: withAPI})
	created := make(map[string]string)
	for _, video := range []struct{ id, meta, creator string }{
		{"first", `{"name":"One fine day"}`, `"ann"`},
		{"second", `{"name":"Another Day"}`, `"bob"`},
		{"third", `{}`, `"ann"`},
	} {
		var set struct {
			Created string `json:"created"`
		}
		g.mustCall(t, http.MethodPost, "stream/"+video.id, fmt.Sprintf(`{"meta":%s,"creator":%s}`, video.meta, video.creator), &set)
		created[video.id] = set.Created
	}
	hourAgo, inAnHour := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	cases := []struct {
		name   string
		params sdk.StreamListParams
		want   []string
	}{
		{"all", sdk.StreamListParams{}, []string{"third", "second", "first"}},
		{"oldest first", sdk.StreamListParams{Asc: cloudflare.F(true)}, []string{"first", "second", "third"}},
		{"two at most", sdk.StreamListParams{Limit: cloudflare.F[int64](2)}, []string{"third", "second"}},
		{"with counts", sdk.StreamListParams{IncludeCounts: cloudflare.F(true)}, []string{"third", "second", "first"}},
		{"of a creator", sdk.StreamListParams{Creator: cloudflare.F("ann")}, []string{"third", "first"}},
		{"with an id", sdk.StreamListParams{ID: cloudflare.F("second")}, []string{"second"}},
		{"with ids", sdk.StreamListParams{ID: cloudflare.F("first,third,fourth")}, []string{"third", "first"}},
		{"with a part of a name", sdk.StreamListParams{Search: cloudflare.F("dAY")}, []string{"second", "first"}},
		{"with a name", sdk.StreamListParams{VideoName: cloudflare.F("Another Day")}, []string{"second"}},
		{"with a name or id", sdk.StreamListParams{Name: cloudflare.F("One fine day,third")}, []string{"third", "first"}},
		{"created after", sdk.StreamListParams{After: cloudflare.F(hourAgo)}, []string{"third", "second", "first"}},
		{"created before", sdk.StreamListParams{Before: cloudflare.F(hourAgo)}, nil},
		{"from start to end", sdk.StreamListParams{Start: cloudflare.F(hourAgo), End: cloudflare.F(inAnHour)}, []string{"third", "second", "first"}},
		{"from a start to come", sdk.StreamListParams{Start: cloudflare.F(inAnHour)}, nil},
		{"ready", sdk.StreamListParams{Status: cloudflare.F(sdk.StreamListParamsStatusReady)}, []string{"third", "second", "first"}},
		{"not ready", sdk.StreamListParams{Status: cloudflare.F(sdk.StreamListParamsStatusQueued)}, nil},
		{"live", sdk.StreamListParams{Type: cloudflare.F("live")}, nil},
		{"two filters", sdk.StreamListParams{Creator: cloudflare.F("ann"), Search: cloudflare.F("day")}, []string{"first"}},
	}
	for _, official := range officialClients {
		t.Run(official.name, func(t *testing.T) {
			client := official.connect(t, g.clientOptions())
			for _, tc := range cases {
				t.Run(tc.name, func(t *testing.T) {
					if diff := cmp.Diff(tc.want, listedIDs(t, client, tc.params)); diff != "" {
						t.Errorf("(-want +got):\n%s", diff)
					}
				})
			}
		})
	}
	// The Go SDK sends whole seconds. Others send back what they got.
	var between []sdk.Video
	g.mustCall(t, http.MethodGet, "stream?after="+created["first"]+"&before="+created["third"], "", &between)
	if len(between) != 1 || between[0].UID != "second" {
		t.Errorf("%d videos between the first and the third, want the second", len(between))
	}
}

// apiProxy stands between a client and the API and counts the calls. It can answer
// calls itself, as an API that is away for a moment.
type apiProxy struct {
	server *httptest.Server
	calls  atomic.Int32
	away   atomic.Bool // for the next call
}

func startAPIProxy(t testing.TB, g *gateway) *apiProxy {
	t.Helper()
	target := &url.URL{Scheme: "http", Host: g.api}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }}
	r := new(apiProxy)
	r.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.calls.Add(1)
		if r.away.Swap(false) {
			w.Header().Set("Retry-After-Ms", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		proxy.ServeHTTP(w, req)
	}))
	t.Cleanup(r.server.Close)
	return r
}

// The official clients see refusals as the errors that they have for them, with
// the reason, and take them for final: they would repeat a call that is refused
// as a conflict or as one too many.
func TestOfficialClientsTakeRefusalsForFinal(t *testing.T) {
	g := start(t, startOrigin(t, nil), config{api: withAPI, app: "video configured {\n\t\t\trequire_signed_urls on\n\t\t}"})
	badRule := []sdk.TokenNewParamsAccessRule{{
		Type: cloudflare.F(sdk.TokenNewParamsAccessRulesTypeAny), Action: cloudflare.F(sdk.TokenNewParamsAccessRulesActionAllow),
	}, {
		Type:   cloudflare.F(sdk.TokenNewParamsAccessRulesTypeIPSrc),
		IP:     cloudflare.F([]string{"192.0.2.300"}),
		Action: cloudflare.F(sdk.TokenNewParamsAccessRulesActionBlock),
	}}
	edit := func(video string, p sdk.StreamEditParams) func(officialClient) error {
		return func(c officialClient) error {
			_, err := c.edit(video, p)
			return err
		}
	}
	mint := func(p sdk.TokenNewParams) func(officialClient) error {
		return func(c officialClient) error {
			_, err := c.mint("vid", p)
			return err
		}
	}
	revoke := func(id string) func(officialClient) error {
		return func(c officialClient) error {
			_, err := c.deleteKey(id)
			return err
		}
	}
	const unknown = "0123456789abcdef0123456789abcdef"
	cases := []struct {
		name    string
		call    func(officialClient) error
		class   string // of the error in TypeScript
		status  int
		code    int
		message string // a part of it
	}{
		{
			"an origin with a protocol", edit("vid", sdk.StreamEditParams{AllowedOrigins: cloudflare.F([]string{"https://example.com"})}),
			"BadRequestError", http.StatusBadRequest, 10005, "allowed origin must not specify protocol",
		},
		{
			"a rule that is none", mint(sdk.TokenNewParams{AccessRules: cloudflare.F(badRule)}),
			"BadRequestError", http.StatusBadRequest, 10005, "192.0.2.300",
		},
		{
			"exp in the past", mint(sdk.TokenNewParams{Exp: cloudflare.F(time.Now().Unix() - 1)}),
			"BadRequestError", http.StatusBadRequest, 10005, "in the past",
		},
		{
			"exp too far ahead", mint(sdk.TokenNewParams{Exp: cloudflare.F(time.Now().Unix() + 25*3600)}),
			"BadRequestError", http.StatusBadRequest, 10005, "24 hours",
		},
		{
			"a key id without its pem", mint(sdk.TokenNewParams{ID: cloudflare.F(keyID)}),
			"BadRequestError", http.StatusBadRequest, 10005, "pem",
		},
		{
			"another video's uid", edit("vid", sdk.StreamEditParams{UID: cloudflare.F("other")}),
			"BadRequestError", http.StatusBadRequest, 10005, "other",
		},
		{
			"an unknown key", revoke(unknown),
			"NotFoundError", http.StatusNotFound, 10003, unknown,
		},
		{
			"a video of the config file", edit("configured", sdk.StreamEditParams{RequireSignedURLs: cloudflare.F(false)}),
			"PermissionDeniedError", http.StatusForbidden, 10002, "config file",
		},
		{
			"settings without end", edit("vid", sdk.StreamEditParams{Creator: cloudflare.F(strings.Repeat("a", 70<<10))}),
			"APIError", http.StatusRequestEntityTooLarge, 10006, "longer than",
		},
	}
	for _, official := range officialClients {
		t.Run(official.name, func(t *testing.T) {
			r := startAPIProxy(t, g)
			base := r.server.URL + "/client/v4"
			client := official.connect(t, clientOptions{BaseURL: base, Token: apiSecret})
			stranger := official.connect(t, clientOptions{BaseURL: base, Token: "another-secret"})
			wantRefusal := func(t *testing.T, call func() error, class string, status, code int, message string) {
				t.Helper()
				r.calls.Store(0)
				got, ok := errors.AsType[*clientError](call())
				if !ok || len(got.Errors) != 1 {
					t.Fatalf("got %v, want one error", got)
				}
				if official.name == "Go" {
					class = "" // there is one for all
				}
				if got.Class != class || got.Status != status || got.Errors[0].Code != code || !strings.Contains(got.Errors[0].Message, message) {
					t.Errorf("got %v, want %s %d with the code %d and %q", got, class, status, code, message)
				}
				if n := r.calls.Load(); n != 1 {
					t.Errorf("called %d times", n)
				}
			}
			for _, tc := range cases {
				t.Run(tc.name, func(t *testing.T) {
					wantRefusal(t, func() error { return tc.call(client) }, tc.class, tc.status, tc.code, tc.message)
				})
			}
			t.Run("another token", func(t *testing.T) {
				wantRefusal(t, func() error { return revoke(unknown)(stranger) },
					"AuthenticationError", http.StatusUnauthorized, 10000, "authentication")
			})
			t.Run("away for a moment", func(t *testing.T) {
				r.calls.Store(0)
				r.away.Store(true)
				if _, err := client.listKeys(); err != nil {
					t.Error(err)
				}
				if n := r.calls.Load(); n != 2 {
					t.Errorf("called %d times, want the call repeated once", n)
				}
			})
		})
	}
	if listed := listedIDs(t, connectGo(t, g.clientOptions()), sdk.StreamListParams{}); !slices.Equal(listed, []string{"configured"}) {
		t.Errorf("after refusals only, the videos with settings are %q", listed)
	}
}

// offlineSigners sign a token for the video demo with a key as the API returned
// it, and know nothing of the gateway.
var offlineSigners = []struct {
	name string
	sign func(t testing.TB, key *sdk.Keys) string
}{
	{"jwk in Node", func(t testing.TB, key *sdk.Keys) string { return signInNode(t, key, "jwk") }},
	{"pem in Node", func(t testing.TB, key *sdk.Keys) string { return signInNode(t, key, "pem") }},
	{"jwk in Go", func(t testing.TB, key *sdk.Keys) string { return signInGo(t, key.ID, key.Jwk) }},
	{"pem in Go", func(t testing.TB, key *sdk.Keys) string { return signInGo(t, key.ID, key.Pem) }},
}

func signInNode(t testing.TB, key *sdk.Keys, form string) string {
	t.Helper()
	input := mustMarshal(t, generatedKey{ID: key.ID, PEM: key.Pem, JWK: key.Jwk, JWKS: json.RawMessage("null")})
	signed := execute(t, "", string(input), tool(t, "node"), "-e", nodeSigner,
		form, `{ "alg": "RS256", kid }`, `{ sub: "demo", kid, exp: now + 3600 }`)
	if signed.code != 0 {
		t.Fatalf("node: exit status %d: %s", signed.code, signed.stderr)
	}
	return strings.TrimSpace(signed.stdout)
}

func signInGo(t testing.TB, id, key string) string {
	t.Helper()
	signing, err := token.ParseSigningKey([]byte(key), id)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := token.Sign(token.Claims{VideoID: "demo", ExpiresAt: time.Now().Add(time.Hour)}, signing)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// A viewer whose token has been revoked does not get the next segment, on the
// connection that played the one before, whatever the version of HTTP. Viewers
// with other keys do.
func TestRevokedKeyInMidPlay(t *testing.T) {
	o := startOrigin(t, exampleMedia())
	g := startTLS(t, o, config{api: withAPI})
	other := mint(t, "demo", nil)
	for _, official := range officialClients {
		t.Run(official.name, func(t *testing.T) {
			client := official.connect(t, g.clientOptions())
			key, err := client.createKey()
			if err != nil {
				t.Fatal(err)
			}
			tokens := make(map[string]string)
			for _, signer := range offlineSigners {
				tokens[signer.name] = signer.sign(t, key)
			}

			viewers := make([]*http.Client, len(protocols))
			dials := make([]*atomic.Int32, len(protocols))
			for i, protocol := range protocols {
				viewers[i], dials[i] = protocol.connect(t, g)
			}
			each := func(check func(viewer *http.Client, signed string)) {
				for i := range protocols {
					for _, signer := range offlineSigners {
						check(viewers[i], tokens[signer.name])
					}
				}
			}
			each(func(viewer *http.Client, signed string) {
				for _, suffix := range []string{"/manifest/video.m3u8", "/video/180p/001.m4s"} {
					o.wantPassed(t, readResponse(t, g.ask(t, viewer, http.MethodGet, "/"+signed+suffix)), "/demo"+suffix)
				}
			})
			if _, err := client.deleteKey(key.ID); err != nil {
				t.Fatal(err)
			}
			each(func(viewer *http.Client, signed string) {
				res := readResponse(t, g.ask(t, viewer, http.MethodGet, "/"+signed+"/video/180p/002.m4s"))
				o.wantRefused(t, res, http.StatusUnauthorized, "key_unknown")
				res = readResponse(t, g.ask(t, viewer, http.MethodGet, "/"+other+"/video/180p/002.m4s"))
				o.wantPassed(t, res, "/demo/video/180p/002.m4s")
			})
			for i, protocol := range protocols {
				if n := dials[i].Load(); n != 1 {
					t.Errorf("%s: %d connections, want one for all requests", protocol.name, n)
				}
			}
		})
	}
}

// What a client sets of a video is in force for the next request: it becomes
// public and private again, and is embedded where its allowed origins are and
// nowhere else.
func TestSettingsAreInForceAtOnce(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{api: withAPI})
	required := verdict{http.StatusUnauthorized, "token_required"}
	notAllowed := verdict{http.StatusForbidden, "origin_not_allowed"}
	noOrigin := verdict{http.StatusForbidden, "origin_required"}
	public := sdk.StreamEditParams{RequireSignedURLs: cloudflare.F(false)}
	private := sdk.StreamEditParams{RequireSignedURLs: cloudflare.F(true)}
	embeddable := sdk.StreamEditParams{AllowedOrigins: cloudflare.F([]string{"example.com", "*.example.org"})}
	anywhere := sdk.StreamEditParams{AllowedOrigins: cloudflare.F([]string{})}
	for _, official := range officialClients {
		t.Run(official.name, func(t *testing.T) {
			client := official.connect(t, g.clientOptions())
			video := "by-" + official.name
			minted := mint(t, video, nil)
			for i, step := range []struct {
				params *sdk.StreamEditParams
				want   map[string]verdict // for Origin headers, without a token
				token  map[string]verdict // and with one
			}{
				{nil, map[string]verdict{"": required}, map[string]verdict{"": plays}},
				{&public, map[string]verdict{"": plays}, map[string]verdict{"": plays}},
				{&private, map[string]verdict{"": required}, map[string]verdict{"": plays}},
				{&embeddable, map[string]verdict{"https://example.com": required}, map[string]verdict{
					"https://example.com":      plays,
					"http://example.com":       plays,
					"https://a.b.example.org":  plays,
					"https://www.example.com":  notAllowed,
					"https://example.com:8443": notAllowed,
					"https://example.net":      notAllowed,
					"":                         noOrigin,
				}},
				{&public, map[string]verdict{
					"https://example.com": plays,
					"https://example.net": notAllowed,
					"":                    noOrigin,
				}, map[string]verdict{"https://example.net": notAllowed}},
				{&anywhere, map[string]verdict{"https://example.net": plays, "": plays}, map[string]verdict{"": plays}},
				{&private, map[string]verdict{"https://example.com": required}, map[string]verdict{"https://example.net": plays}},
			} {
				if step.params != nil {
					if _, err := client.edit(video, *step.params); err != nil {
						t.Fatal(err)
					}
				}
				for first, verdicts := range map[string]map[string]verdict{video: step.want, minted: step.token} {
					for origin, want := range verdicts {
						var header []string
						if origin != "" {
							header = []string{"Origin: " + origin}
						}
						if got := g.get(t, "/"+first+"/manifest/video.m3u8", header...).verdict(); got != want {
							t.Errorf("step %d, with a token %v, from %q: %v, want %v", i, first == minted, origin, got, want)
						}
					}
				}
			}
		})
	}
}

// Of many changes, made while others change other things, not one is late: the
// request after the answer meets each of them, be it a revocation or a setting.
func TestNoChangeIsLate(t *testing.T) {
	const changes = 100
	o := startOrigin(t, nil)
	keys := make([]*token.SigningKey, changes)
	for i := range keys {
		keys[i] = newSigningKey(fmt.Sprintf("key-%d", i), privateKey())
	}
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "keys.json"), publicJWKS(t, keys...))
	g := start(t, o, config{api: withAPI, keys: filepath.Join(dir, "keys.json")})

	var others sync.WaitGroup
	defer others.Wait()
	done := make(chan struct{})
	defer close(done)
	for i := range 2 {
		others.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				res, err := g.tryCall(http.MethodPost, fmt.Sprintf("stream/other-%d", i), `{"creator":"somebody"}`)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
			}
		})
	}

	for i, key := range keys {
		signed, err := token.Sign(token.Claims{VideoID: "vid", ExpiresAt: time.Now().Add(time.Hour)}, key)
		if err != nil {
			t.Fatal(err)
		}
		o.wantPassed(t, g.get(t, "/"+signed+"/video/1.ts"), "/vid/video/1.ts")
		g.mustCall(t, http.MethodDelete, "stream/keys/"+key.ID(), "", nil)
		o.wantRefused(t, g.get(t, "/"+signed+"/video/2.ts"), http.StatusUnauthorized, "key_unknown")

		private := i%2 == 1
		g.mustCall(t, http.MethodPost, "stream/vid", fmt.Sprintf(`{"requireSignedURLs":%v}`, private), nil)
		if res := g.get(t, "/vid/video/1.ts"); private {
			o.wantRefused(t, res, http.StatusUnauthorized, "token_required")
		} else {
			o.wantPassed(t, res, "/vid/video/1.ts")
		}
	}
}

// filledScript returns a script of the document with its placeholders, each of
// which it contains once, replaced.
func filledScript(t testing.TB, name string, values map[string]string) string {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	script := string(data)
	for placeholder, value := range values {
		if strings.Count(script, placeholder) != 1 {
			t.Fatalf("%s does not contain %s once", name, placeholder)
		}
		script = strings.ReplaceAll(script, placeholder, value)
	}
	return script
}

// runScript runs a script with Node and returns what it prints.
func runScript(t testing.TB, script string) string {
	t.Helper()
	ran := execute(t, "", script, tool(t, "node"), "-")
	if ran.code != 0 {
		t.Fatalf("node: exit status %d: %s", ran.code, ran.stderr)
	}
	return strings.TrimSpace(ran.stdout)
}

// workerRuntime is what the document's Workers need of theirs, and Node does not
// have: it hands a script one request and prints the response.
const workerRuntime = `
const addEventListener = (type, listener) => listener({
  respondWith: async response => console.log(await (await response).text())
})
`

const cloudflareHost = "https://api.cloudflare.com"

// The document's two Workers that ask for tokens run against this API with only
// the host, the account and the video put in, and their tokens do what the
// document says.
func TestDocumentWorkers(t *testing.T) {
	o := startOrigin(t, exampleMedia())
	g := start(t, o, config{api: withBothCredentials, app: withCountries(t)})
	blocked := verdict{http.StatusForbidden, "rule_blocked"}
	const us, gb = "127.0.0.1", "127.0.0.2"
	for _, tc := range []struct {
		name, script     string
		inUS, inGB       verdict
		loadedUS, loaded verdict // downloads
	}{
		{
			"for 12 hours", "secure-your-stream-worker.js", plays, plays,
			verdict{http.StatusForbidden, "download_not_allowed"},
			verdict{http.StatusForbidden, "download_not_allowed"},
		},
		{"with rules", "secure-your-stream-worker-rules.js", blocked, plays, blocked, plays},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := time.Now().Unix()
			printed := runScript(t, workerRuntime+filledScript(t, tc.script, map[string]string{
				cloudflareHost:    "http://" + g.api,
				"{ACCOUNT_EMAIL}": apiEmail,
				"{ACCOUNT_KEY}":   apiKeyOf,
				"{ACCOUNT_ID}":    account,
				"{VIDEO_ID}":      "demo",
			}))
			after := time.Now().Unix()
			var answer struct {
				Result   sdk.TokenNewResponse `json:"result"`
				Success  bool                 `json:"success"`
				Messages []apiMessage         `json:"messages"`
			}
			if err := json.Unmarshal([]byte(printed), &answer); err != nil || !answer.Success || len(answer.Messages) != 0 {
				t.Fatalf("the script printed %s: %v", printed, err)
			}
			compact := answer.Result.Token
			if exp := payloadOf(t, compact).ExpiresAt - 12*3600; exp < before || exp > after {
				t.Errorf("exp is not 12 hours ahead but %d seconds", exp+12*3600-before)
			}
			for viewer, want := range map[string][]verdict{us: {tc.inUS, tc.loadedUS}, gb: {tc.inGB, tc.loaded}} {
				got := []verdict{
					g.getFrom(t, viewer, "/"+compact+"/manifest/video.m3u8").verdict(),
					g.getFrom(t, viewer, "/"+compact+"/downloads/default.mp4").verdict(),
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("a manifest and a download for %s (-want +got):\n%s", viewer, diff)
				}
			}
		})
	}
}

// The document's script that signs by itself does so with a key that the API has
// made, which the gateway knows from nowhere else.
func TestDocumentScriptWithKeyOfTheAPI(t *testing.T) {
	o := startOrigin(t, exampleMedia())
	g := start(t, o, config{api: withAPI, app: withCountries(t)})
	key := g.createKey(t)
	signed := runScript(t, filledScript(t, "secure-your-stream.js", map[string]string{
		"{PRIVATE-KEY-IN-JWK-FORMAT}": key.JWK,
		"$KEYID":                      key.ID,
		"$VIDEOID":                    "demo",
	})+"\nstreamSignedUrl().then(token => console.log(token))\n")
	o.wantPassed(t, g.getFrom(t, "127.0.0.2", "/"+signed+"/manifest/video.m3u8"), "/demo/manifest/video.m3u8")
	o.wantRefused(t, g.getFrom(t, "127.0.0.1", "/"+signed+"/manifest/video.m3u8"), http.StatusForbidden, "rule_blocked")
}

// The commands of the document, in which a shell sees one line each, with the
// two that it describes in words.
const (
	curlRequire = `curl -X POST -H "Authorization: Bearer $TOKEN" "https://api.cloudflare.com/client/v4/accounts/$ACCOUNT/stream/$VIDEOID"
-H "Content-Type: application/json"
-d "{\"uid\": \"$VIDEOID\", \"requireSignedURLs\": true }"`

	curlOrigins = `curl -X POST \
-d "{\"uid\": \"$VIDEOID\", \"allowedOrigins\": [\"example.com\"]}" \

https://api.cloudflare.com/client/v4/accounts/$ACCOUNT/stream/$VIDEOID`

	curlRevoke = `curl -X DELETE -H "Authorization: Bearer $TOKEN"  "https://api.cloudflare.com/client/v4/accounts/$ACCOUNT/stream/keys/$KEYID"`

	curlCreate = `curl -X POST -H "Authorization: Bearer $TOKEN" "https://api.cloudflare.com/client/v4/accounts/$ACCOUNT/stream/keys"`
	curlMint   = `curl -X POST -H "Authorization: Bearer $TOKEN" "https://api.cloudflare.com/client/v4/accounts/$ACCOUNT/stream/$VIDEOID/token"`
)

// The document's curl commands work with only the host, the account and the
// credentials put in, also the one that sends JSON and says that it is a form.
func TestDocumentCurl(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{api: withBothCredentials})
	tool(t, "curl")
	const bearer = `-H "Authorization: Bearer $TOKEN"`
	for _, way := range []struct{ name, video, header string }{
		{"token", "vid-token", bearer},
		{"email and key", "vid-key", `-H "X-Auth-Email: $EMAIL" -H "X-Auth-Key: $KEY"`},
	} {
		t.Run(way.name, func(t *testing.T) {
			t.Setenv("ACCOUNT", account)
			t.Setenv("VIDEOID", way.video)
			t.Setenv("TOKEN", apiSecret)
			t.Setenv("EMAIL", apiEmail)
			t.Setenv("KEY", apiKeyOf)
			run := func(command string, result any) {
				t.Helper()
				command = strings.ReplaceAll(command, cloudflareHost, "http://"+g.api)
				command = strings.ReplaceAll(command, bearer, way.header)
				if !strings.Contains(command, way.header) { // that line has no credential in the document
					command = strings.Replace(command, "curl ", "curl "+way.header+" ", 1)
				}
				command = strings.NewReplacer("\\\n", " ", "\n", " ").Replace(command)
				ran := execute(t, "", "", "sh", "-c", command)
				var answer apiResponse
				if err := json.Unmarshal([]byte(ran.stdout), &answer); err != nil || ran.code != 0 || !answer.Success {
					t.Fatalf("%s: exit status %d: %v\n%s%s", command, ran.code, err, ran.stdout, ran.stderr)
				}
				if err := json.Unmarshal(answer.Result, result); err != nil {
					t.Fatalf("%s: %v: %s", command, err, answer.Result)
				}
			}
			bare := "/" + way.video + "/manifest/video.m3u8"

			g.mustCall(t, http.MethodPost, "stream/"+way.video, `{"requireSignedURLs":false}`, nil)
			o.wantPassed(t, g.get(t, bare), bare)
			var video sdk.Video
			run(curlRequire, &video)
			if !video.RequireSignedURLs || video.UID != way.video {
				t.Errorf("the answer is of the video %q, with requireSignedURLs %v", video.UID, video.RequireSignedURLs)
			}
			o.wantRefused(t, g.get(t, bare), http.StatusUnauthorized, "token_required")

			var minted sdk.TokenNewResponse
			run(curlMint, &minted)
			path := "/" + minted.Token + "/manifest/video.m3u8"
			o.wantPassed(t, g.get(t, path), bare)

			run(curlOrigins, &video)
			if !slices.Equal(video.AllowedOrigins, []string{"example.com"}) || !video.RequireSignedURLs {
				t.Errorf("the answer has allowedOrigins %q and requireSignedURLs %v", video.AllowedOrigins, video.RequireSignedURLs)
			}
			o.wantPassed(t, g.get(t, path, "Origin: https://example.com"), bare)
			if got, want := g.get(t, path, "Origin: https://example.net").verdict(), (verdict{http.StatusForbidden, "origin_not_allowed"}); got != want {
				t.Errorf("from another origin: %v, want %v", got, want)
			}

			var key sdk.Keys
			run(curlCreate, &key)
			signed := "/" + signInGo(t, key.ID, key.Pem) + "/video/1.ts"
			o.wantPassed(t, g.get(t, signed), "/demo/video/1.ts")
			t.Setenv("KEYID", key.ID)
			var result string
			if run(curlRevoke, &result); result != "Revoked" {
				t.Errorf("the result of a revocation is %q", result)
			}
			o.wantRefused(t, g.get(t, signed), http.StatusUnauthorized, "key_unknown")
		})
	}
}

// memberNames returns the names of an object's members in their order.
func memberNames(t testing.TB, object []byte) (names []string) {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(object))
	if start, err := dec.Token(); err != nil || start != json.Delim('{') {
		t.Fatalf("%.200q is not an object: %v", object, err)
	}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, name.(string))
		if err := dec.Decode(new(json.RawMessage)); err != nil {
			t.Fatal(err)
		}
	}
	return names
}

func wantMembers(t testing.TB, object []byte, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, memberNames(t, object)); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
}

// wantEnvelope checks the form of every answer.
func wantEnvelope(t testing.TB, res *apiResponse) {
	t.Helper()
	wantMembers(t, res.body, "result", "success", "errors", "messages")
	for name, want := range map[string]string{"Content-Type": "application/json", "Cache-Control": "no-store"} {
		if got := res.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if res.Errors == nil || res.Messages == nil {
		t.Errorf("errors or messages are not an array: %s", res.body)
	}
	for _, m := range res.Errors {
		if m.Code == 0 || m.Message == "" {
			t.Errorf("an error without a code or a message: %s", res.body)
		}
	}
}

// decodedPEM decodes the pem of the keys API and checks its form.
func decodedPEM(t testing.TB, encoded string) (text string, key *rsa.PrivateKey) {
	t.Helper()
	decoded, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil {
		t.Fatalf("pem is not padded standard base64: %v", err)
	}
	block, rest := pem.Decode(decoded)
	if block == nil || len(rest) != 0 {
		t.Fatalf("pem holds no PEM, or more: %q", rest)
	}
	if block.Type != "RSA PRIVATE KEY" || !bytes.Equal(decoded, pem.EncodeToMemory(block)) || decoded[len(decoded)-1] != '\n' {
		t.Error("pem is not as -----BEGIN RSA PRIVATE KEY----- with a newline at the end")
	}
	if key, err = x509.ParsePKCS1PrivateKey(block.Bytes); err != nil {
		t.Fatal(err)
	}
	return string(decoded), key
}

// decodedJWK decodes the jwk of the keys API.
func decodedJWK(t testing.TB, encoded string) (jwk map[string]string) {
	t.Helper()
	decoded, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err == nil {
		err = json.Unmarshal(decoded, &jwk)
	}
	if err != nil {
		t.Fatalf("jwk is not an object in padded standard base64: %v", err)
	}
	return jwk
}

// privateNumbers returns the numbers of a key that nobody else may know, by
// their names in a JWK.
func privateNumbers(key *rsa.PrivateKey) map[string][]byte {
	return map[string][]byte{
		"d":  key.D.Bytes(),
		"p":  key.Primes[0].Bytes(),
		"q":  key.Primes[1].Bytes(),
		"dp": key.Precomputed.Dp.Bytes(),
		"dq": key.Precomputed.Dq.Bytes(),
		"qi": key.Precomputed.Qinv.Bytes(),
	}
}

// A key looks as Cloudflare's do, in both of its forms, when it is made; the
// list has the newest first, and of none more than that it exists.
func TestKeysOnTheWire(t *testing.T) {
	g := start(t, startOrigin(t, nil), config{api: withAPI})
	var made []apiKey // newest first
	for _, body := range []struct{ text, contentType string }{
		{"", ""},
		{"{}", "application/json"},
		{"{}", "application/x-www-form-urlencoded"},
		{" null\n", "text/plain"},
	} {
		res := g.call(t, http.MethodPost, "stream/keys", body.text, "Content-Type: "+body.contentType)
		if res.StatusCode != http.StatusOK {
			t.Fatalf("with the body %q as %q: %s", body.text, body.contentType, res.body)
		}
		wantEnvelope(t, res)
		wantMembers(t, res.Result, "id", "pem", "jwk", "created")
		var key apiKey
		if err := json.Unmarshal(res.Result, &key); err != nil {
			t.Fatal(err)
		}
		made = slices.Insert(made, 0, key)
	}
	for _, key := range made {
		if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(key.ID) {
			t.Errorf("the id is %q, want 32 hexadecimal digits", key.ID)
		}
		_, pair := decodedPEM(t, key.PEM)
		if bits := pair.N.BitLen(); bits != 2048 || pair.E != 65537 {
			t.Errorf("an RSA key of %d bits with e = %d", bits, pair.E)
		}
		want := map[string]string{
			"kid": key.ID, "use": "sig", "kty": "RSA", "alg": "RS256", "e": "AQAB",
			"n": base64.RawURLEncoding.EncodeToString(pair.N.Bytes()),
		}
		for name, number := range privateNumbers(pair) {
			want[name] = base64.RawURLEncoding.EncodeToString(number)
		}
		got := decodedJWK(t, key.JWK)
		for name := range privateNumbers(pair) { // which writers may pad with zeros
			number, err := base64.RawURLEncoding.DecodeString(got[name])
			if err != nil {
				t.Error(err)
			}
			got[name] = base64.RawURLEncoding.EncodeToString(bytes.TrimLeft(number, "\x00"))
		}
		if !cmp.Equal(want, got) {
			t.Errorf("the jwk %q is not the key of the pem", slices.Sorted(maps.Keys(got)))
		}
	}

	res := g.call(t, http.MethodGet, "stream/keys", "")
	wantEnvelope(t, res)
	var list []json.RawMessage
	if err := json.Unmarshal(res.Result, &list); err != nil || len(list) != len(made) {
		t.Fatalf("%d keys listed, want %d: %v", len(list), len(made), err)
	}
	for i, raw := range list {
		wantMembers(t, raw, "id", "key_id", "created")
		var item struct {
			ID      string `json:"id"`
			KeyID   string `json:"key_id"`
			Created string `json:"created"`
		}
		if err := json.Unmarshal(raw, &item); err != nil {
			t.Fatal(err)
		}
		if item.ID != made[i].ID || item.KeyID != item.ID || item.Created != made[i].Created {
			t.Errorf("key %d of the list is %s, want %s of %s", i, raw, made[i].ID, made[i].Created)
		}
		if _, err := time.Parse(time.RFC3339, item.Created); err != nil || !strings.HasSuffix(item.Created, "Z") {
			t.Errorf("created is %q: %v", item.Created, err)
		}
	}

	res = g.call(t, http.MethodDelete, "stream/keys/"+made[0].ID, "")
	wantEnvelope(t, res)
	if string(res.Result) != `"Revoked"` {
		t.Errorf("the result of a revocation is %s", res.Result)
	}
	wantEnvelope(t, g.call(t, http.MethodDelete, "stream/keys/"+made[0].ID, ""))
}

// A token that the API mints is spelled as Cloudflare's, however the call says
// that nothing is set, and whatever it says that its body is.
func TestMintedTokensOnTheWire(t *testing.T) {
	g := start(t, startOrigin(t, nil), config{api: withAPI})
	for body, more := range map[string]string{ // what the payload has at its end
		"": "", "{}": "", "\t{ }\r\n": "", "null": "", `{"exp":0}`: "", `{"nbf":0,"exp":0}`: "",
		`{"downloadable":false,"exp":0,"nbf":0}`: "",
		`{"downloadable":true}`:                  `,"downloadable":true`,
	} {
		for _, contentType := range []string{
			"", "application/json", "application/json;charset=UTF-8", "application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x", "nonsense",
		} {
			res := g.call(t, http.MethodPost, "stream/vid/token", body, "Content-Type: "+contentType)
			if res.StatusCode != http.StatusOK {
				t.Errorf("the body %q as %q: %s", body, contentType, res.body)
				continue
			}
			wantEnvelope(t, res)
			wantMembers(t, res.Result, "token")
			var minted struct {
				Token string `json:"token"`
			}
			if err := json.Unmarshal(res.Result, &minted); err != nil {
				t.Fatal(err)
			}
			parsed, err := token.Parse(minted.Token)
			if err != nil {
				t.Fatal(err)
			}
			header, payload := parsed.Documents()
			p := payloadOf(t, minted.Token)
			if want := fmt.Sprintf(`{"alg":"RS256","kid":%q}`, p.KeyID); header != want {
				t.Errorf("the body %q as %q: header %s, want %s", body, contentType, header, want)
			}
			want := fmt.Sprintf(`{"sub":"vid","kid":%q,"exp":"%d","nbf":"%d"%s}`, p.KeyID, p.NotBefore+7200, p.NotBefore, more)
			if payload != want {
				t.Errorf("the body %q as %q: payload %s, want %s", body, contentType, payload, want)
			}
		}
	}
	wantEnvelope(t, g.call(t, http.MethodPost, "stream/vid/token", `{"exp":1}`))
}

// A video has all members that Cloudflare's have, in their order, whether
// anybody has set something or not.
func TestVideosOnTheWire(t *testing.T) {
	g := start(t, startOrigin(t, nil), config{api: withAPI, app: "public_url https://media.example.com"})
	// As recorded, without liveInput, which only recordings of one have.
	members := []string{
		"uid", "creator", "thumbnail", "thumbnailTimestampPct", "readyToStream", "readyToStreamAt", "status", "meta",
		"created", "modified", "scheduledDeletion", "size", "preview", "allowedOrigins", "requireSignedURLs", "uploaded",
		"uploadExpiry", "maxSizeBytes", "maxDurationSeconds", "duration", "input", "playback", "watermark", "clippedFrom",
		"publicDetails",
	}
	for _, contentType := range []string{"", "application/json", "application/x-www-form-urlencoded", "text/plain"} {
		res := g.call(t, http.MethodGet, "stream/vid", "")
		wantEnvelope(t, res)
		wantMembers(t, res.Result, members...)
		res = g.call(t, http.MethodPost, "stream/vid", `{"requireSignedURLs":false,"meta":{"b":1, "a":"é"}}`, "Content-Type: "+contentType)
		wantEnvelope(t, res)
		wantMembers(t, res.Result, members...)
		var video struct {
			Created           string          `json:"created"`
			Meta              json.RawMessage `json:"meta"`
			RequireSignedURLs bool            `json:"requireSignedURLs"`
			Playback          struct {
				HLS  string `json:"hls"`
				DASH string `json:"dash"`
			} `json:"playback"`
		}
		if err := json.Unmarshal(res.Result, &video); err != nil {
			t.Fatal(err)
		}
		if video.RequireSignedURLs {
			t.Errorf("as %q, nothing was set", contentType)
		}
		wantMembers(t, video.Meta, "b", "a")
		if _, err := time.Parse(time.RFC3339, video.Created); err != nil {
			t.Error(err)
		}
		const base = "https://media.example.com/vid/manifest/video"
		if video.Playback.HLS != base+".m3u8" || video.Playback.DASH != base+".mpd" {
			t.Errorf("playback is %+v", video.Playback)
		}
		res = g.call(t, http.MethodGet, "stream", "")
		wantEnvelope(t, res)
		var list []json.RawMessage
		if err := json.Unmarshal(res.Result, &list); err != nil || len(list) != 1 {
			t.Fatalf("%d videos listed: %v", len(list), err)
		}
		wantMembers(t, list[0], members...)
		g.mustCall(t, http.MethodDelete, "stream/vid", "", nil)
	}
}

// Whoever gets the storage, the log or the API's lists cannot sign: the private
// half of a key that the API has made goes to its caller and stays nowhere, also
// if he hands it back to have a token signed.
func TestStealPrivateHalves(t *testing.T) {
	addr := freeAddr(t)
	g := start(t, startOrigin(t, nil), config{
		apiAddr: addr,
		sites: fmt.Sprintf("http://%s {\n\tlog\n\tsigned_playback_api {\n\t\tbearer_token {env.API_SECRET}\n\t\tauth_key %s {env.API_KEY}\n\t}\n}\n",
			addr, apiEmail),
	})
	answer := g.call(t, http.MethodPost, "stream/keys", "{}", "Authorization: ", "X-Auth-Email: "+apiEmail, "X-Auth-Key: "+apiKeyOf)
	var first apiKey
	if err := json.Unmarshal(answer.Result, &first); err != nil {
		t.Fatal(err)
	}
	second := g.createKey(t)
	withPEM := func(id, pem string) string { return string(mustMarshal(t, map[string]string{"id": id, "pem": pem})) }
	g.mintToken(t, "vid", withPEM(first.ID, first.PEM))
	g.mintToken(t, "vid", withPEM(second.ID, second.PEM))
	wrong := g.call(t, http.MethodPost, "stream/vid/token", withPEM(first.ID, second.PEM))
	own := keyIDOf(t, g.mintToken(t, "vid", ""))
	list := g.mustCall(t, http.MethodGet, "stream/keys", "", nil)
	g.mustCall(t, http.MethodDelete, "stream/keys/"+second.ID, "", nil)
	g.stop(t)

	places := map[string]string{
		"the log":     g.log.String(),
		"the list":    string(list.body),
		"a refusal":   string(wrong.body),
		"the storage": storedKeys(t, g),
	}
	_, pair := decodedPEM(t, first.PEM)
	for place, public := range map[string]string{
		"the log":     first.ID,
		"the list":    first.ID,
		"the storage": base64.RawURLEncoding.EncodeToString(pair.N.Bytes()),
	} {
		if !strings.Contains(places[place], public) {
			t.Errorf("%s has nothing of the key, so what is looked for may be spelled otherwise there", place)
		}
	}
	for _, key := range []apiKey{first, second} {
		for what, secret := range secretsOf(t, key) {
			for place, text := range places {
				if strings.Contains(text, secret) {
					t.Errorf("%s of a key is in %s", what, place)
				}
			}
		}
	}
	if strings.Contains(places["the list"], own) {
		t.Error("the list has the gateway's own key")
	}
	anyPEM := base64.RawStdEncoding.EncodeToString([]byte("-----BEGIN RSA PRIV")) // the gateway's own, too
	for _, secret := range []string{apiSecret, apiKeyOf, "PRIVATE KEY", anyPEM[:24]} {
		if strings.Contains(places["the log"], secret) {
			t.Errorf("%s is in the log", secret)
		}
	}
}

// storedKeys returns all that a gateway has in files but its own signing key.
func storedKeys(t testing.TB, g *gateway) string {
	t.Helper()
	var stored strings.Builder
	err := filepath.WalkDir(g.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == filepath.Join(g.dir, "caddy", "signed_playback", "signing") {
			return fs.SkipDir
		}
		if entry.IsDir() {
			return nil
		}
		data, err := os.ReadFile(path)
		stored.Write(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return stored.String()
}

// secretsOf returns the private half of a key in every spelling in which it may
// lie about.
func secretsOf(t testing.TB, key apiKey) map[string]string {
	t.Helper()
	text, pair := decodedPEM(t, key.PEM)
	secrets := map[string]string{"pem": key.PEM, "jwk": key.JWK, "the PEM in it": text}
	for i, line := range strings.Split(strings.TrimSpace(text), "\n") {
		const public = 6 // up to there, lines hold n and e
		if i > public && !strings.HasPrefix(line, "-----") {
			secrets[fmt.Sprintf("line %d of the PEM", i)] = line
		}
	}
	for name, number := range privateNumbers(pair) {
		secrets[name] = string(number)
		secrets[name+" in base64url"] = base64.RawURLEncoding.EncodeToString(number)
		secrets[name+" in base64"] = base64.RawStdEncoding.EncodeToString(number)
		secrets[name+" in hexadecimal"] = hex.EncodeToString(number)
		secrets[name+" in decimal"] = new(big.Int).SetBytes(number).String()
	}
	return secrets
}
