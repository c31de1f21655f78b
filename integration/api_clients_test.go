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

// callNode does one call and decodes its result.
func callNode[T any](c *nodeClient, name string, args ...any) (result T, err error) {
	line, err := json.Marshal(append([]any{name}, args...))
	if err != nil {
		return result, err
	}
	if _, err := c.stdin.Write(append(line, '\n')); err != nil {
		return result, fmt.Errorf("calling %s: %w: %s", name, err, c.stderr)
	}
	if !c.stdout.Scan() {
		return result, fmt.Errorf("calling %s: node has ended: %w: %s", name, c.stdout.Err(), c.stderr)
	}
	out := struct {
		Result *T           `json:"result"`
		Error  *clientError `json:"error"`
	}{Result: &result}
	if err := json.Unmarshal(c.stdout.Bytes(), &out); err != nil {
		return result, fmt.Errorf("calling %s: %w: %.200q", name, err, c.stdout.Bytes())
	}
	if out.Error != nil {
		return result, out.Error
	}
	return result, nil
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

func (c *nodeClient) createKey() (*sdk.Keys, error) {
	return callNode[*sdk.Keys](c, "keys.create", inAccount{})
}

func (c *nodeClient) listKeys() ([]sdk.KeyGetResponse, error) {
	return callNode[[]sdk.KeyGetResponse](c, "keys.get", inAccount{})
}

func (c *nodeClient) deleteKey(id string) (string, error) {
	return callNode[string](c, "keys.delete", id, inAccount{})
}

func (c *nodeClient) mint(video string, p sdk.TokenNewParams) (string, error) {
	minted, err := callNode[sdk.TokenNewResponse](c, "token.create", video, inAccount{p})
	return minted.Token, err
}

func (c *nodeClient) edit(video string, p sdk.StreamEditParams) (*sdk.Video, error) {
	return callNode[*sdk.Video](c, "edit", video, inAccount{p})
}

func (c *nodeClient) video(id string) (*sdk.Video, error) {
	return callNode[*sdk.Video](c, "get", id, inAccount{})
}

func (c *nodeClient) videos(p sdk.StreamListParams) ([]sdk.Video, error) {
	query := map[string]string{"account_id": account}
	for name, values := range p.URLQuery() {
		query[name] = values[0]
	}
	return callNode[[]sdk.Video](c, "list", query)
}

func (c *nodeClient) deleteVideo(id string) error {
	_, err := callNode[any](c, "delete", id, inAccount{})
	return err
}

// With the address, the account and a credential, and nothing else, the official
// clients manage keys, mint tokens that play, and change, read, list and forget the
// settings of videos. What each parameter means is for the unit tests; here, both
// sides have to agree how it is written.
func TestOfficialClients(t *testing.T) {
	for _, official := range officialClients {
		t.Run(official.name, func(t *testing.T) {
			t.Parallel()
			o := startOrigin(t, exampleMedia())
			g := start(t, o, config{api: withBothCredentials, app: withCountries(t)})
			client := official.connect(t, g.clientOptions())
			t.Run("keys", func(t *testing.T) { wantKeysManaged(t, client) })
			t.Run("tokens", func(t *testing.T) { wantTokensMinted(t, g, client) })
			t.Run("settings", func(t *testing.T) { wantVideosEdited(t, client) })
			t.Run("lists", func(t *testing.T) { wantVideosListed(t, g, client) })
			t.Run("email and key", func(t *testing.T) {
				owner := official.connect(t, clientOptions{BaseURL: g.clientOptions().BaseURL, Email: apiEmail, Key: apiKeyOf})
				if keys, err := owner.listKeys(); err != nil || len(keys) != 1 {
					t.Errorf("%d keys: %v", len(keys), err)
				}
			})
		})
	}
}

// wantKeysManaged makes, lists and revokes keys where there are none.
func wantKeysManaged(t *testing.T, client officialClient) {
	t.Helper()
	type listed struct {
		ID, KeyID string
		Created   time.Time
	}
	list := func() (got []listed) {
		keys, err := client.listKeys()
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range keys {
			got = append(got, listed{key.ID, key.KeyID, key.Created})
		}
		return got
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
	if diff := cmp.Diff(want, list()); diff != "" {
		t.Errorf("listed keys (-want +got):\n%s", diff)
	}
	for _, key := range want {
		if result, err := client.deleteKey(key.ID); err != nil || result != "Revoked" {
			t.Fatalf("deleting a key: %q, %v", result, err)
		}
	}
	if left := list(); len(left) != 0 {
		t.Errorf("listed keys after all have been revoked: %v", left)
	}
}

// wantTokensMinted mints tokens that say what was asked for, and has the gate
// enforce it.
func wantTokensMinted(t *testing.T, g *gateway, client officialClient) {
	t.Helper()
	key := g.createKey(t)
	now := time.Unix(time.Now().Unix(), 0)
	rules := []sdk.TokenNewParamsAccessRule{{
		Type:   cloudflare.F(sdk.TokenNewParamsAccessRulesTypeIPSrc),
		IP:     cloudflare.F([]string{"127.0.0.3", "2400:cb00::/32"}),
		Action: cloudflare.F(sdk.TokenNewParamsAccessRulesActionBlock),
	}, {
		Type:    cloudflare.F(sdk.TokenNewParamsAccessRulesTypeIPGeoipCountry),
		Country: cloudflare.F([]string{"GB", "MX"}),
		Action:  cloudflare.F(sdk.TokenNewParamsAccessRulesActionAllow),
	}, {
		Type:   cloudflare.F(sdk.TokenNewParamsAccessRulesTypeAny),
		Action: cloudflare.F(sdk.TokenNewParamsAccessRulesActionBlock),
	}}
	noDownload := verdict{http.StatusForbidden, "download_not_allowed"}
	blocked := verdict{http.StatusForbidden, "rule_blocked"}
	early := verdict{http.StatusUnauthorized, "token_not_yet_valid"}
	for _, tc := range []struct {
		name           string
		params         sdk.TokenNewParams
		want           token.Claims // without what is not set
		inUS, download verdict      // of a manifest for a viewer in the US, and of a download in GB
	}{
		{"nothing", sdk.TokenNewParams{}, token.Claims{}, plays, noDownload},
		{
			"exp and nbf", sdk.TokenNewParams{Exp: cloudflare.F(now.Unix() + 7200), Nbf: cloudflare.F(now.Unix() + 3600)},
			token.Claims{ExpiresAt: now.Add(2 * time.Hour), NotBefore: now.Add(time.Hour)}, early, early,
		},
		{
			"zeros", sdk.TokenNewParams{
				Exp: cloudflare.F[int64](0), Nbf: cloudflare.F[int64](0), Downloadable: cloudflare.F(false),
				Flags: cloudflare.F(sdk.TokenNewParamsFlags{Original: cloudflare.F(false)}),
			}, token.Claims{}, plays, noDownload,
		},
		{
			"downloadable, with rules", sdk.TokenNewParams{AccessRules: cloudflare.F(rules), Downloadable: cloudflare.F(true)},
			token.Claims{AccessRules: mustMarshal(t, rules), Downloadable: true}, blocked, plays,
		},
		{"id and pem", sdk.TokenNewParams{ID: cloudflare.F(key.ID), Pem: cloudflare.F(key.PEM)}, token.Claims{KeyID: key.ID}, plays, noDownload},
	} {
		t.Run(tc.name, func(t *testing.T) {
			compact, err := client.mint("demo", tc.params)
			if err != nil {
				t.Fatal(err)
			}
			parsed, err := token.Parse(compact)
			if err != nil {
				t.Fatal(err)
			}
			got, want := parsed.Unverified(), tc.want
			want.VideoID = "demo"
			if want.KeyID == "" {
				want.KeyID = got.KeyID
			}
			if want.ExpiresAt.IsZero() {
				want.ExpiresAt, want.NotBefore = got.ExpiresAt, got.NotBefore
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("claims (-want +got):\n%s", diff)
			}
			verdicts := []verdict{
				g.getFrom(t, "127.0.0.1", "/"+compact+"/manifest/video.m3u8").verdict(),
				g.getFrom(t, "127.0.0.2", "/"+compact+"/downloads/default.mp4").verdict(),
			}
			if diff := cmp.Diff([]verdict{tc.inUS, tc.download}, verdicts); diff != "" {
				t.Errorf("in the US, and a download in GB (-want +got):\n%s", diff)
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

// wantVideosEdited reads back what it has set, keeps what a change leaves out, and
// deletes it all.
func wantVideosEdited(t *testing.T, client officialClient) {
	t.Helper()
	date := time.Date(2031, 2, 3, 4, 5, 6, 0, time.UTC)
	defaults := sentSettings{UID: "vid", RequireSignedURLs: true, AllowedOrigins: []string{}, Meta: map[string]any{}}
	full := sentSettings{
		UID: "vid", AllowedOrigins: []string{"example.com", "*.example.org", "localhost:8080"},
		Meta:    map[string]any{"name": "A film", "nested": map[string]any{"year": 1927.0}},
		Creator: "Fritz", Title: "Metropolis", Logo: "https://example.com/logo.png", ThumbnailPct: 0.529241,
		ScheduledDeletion: date, UploadExpiry: date.Add(time.Hour), MaxDurationSeconds: 9180,
	}
	changed := full
	changed.RequireSignedURLs, changed.Creator, changed.ScheduledDeletion = true, "Thea", time.Time{}
	for _, tc := range []struct {
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
		{"some of it", sdk.StreamEditParams{
			Creator: cloudflare.F("Thea"), RequireSignedURLs: cloudflare.F(true), ScheduledDeletion: cloudflare.Null[time.Time](),
		}, changed},
	} {
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
	if diff := cmp.Diff(defaults, sentSettingsOf(read)); diff != "" || !read.Created.IsZero() {
		t.Errorf("deleted, created %s (-want +got):\n%s", read.Created, diff)
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

// wantVideosListed asks for lists with every filter of the clients.
func wantVideosListed(t *testing.T, g *gateway, client officialClient) {
	t.Helper()
	for _, video := range []struct{ id, settings string }{
		{"first", `{"meta":{"name":"One fine day"},"creator":"ann"}`},
		{"second", `{"meta":{"name":"Another Day"},"creator":"bob"}`},
		{"third", `{"creator":"ann"}`},
	} {
		g.edit(t, video.id, video.settings)
	}
	hourAgo, inAnHour := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	for _, tc := range []struct {
		params sdk.StreamListParams
		want   []string
	}{
		{sdk.StreamListParams{}, []string{"third", "second", "first"}},
		{sdk.StreamListParams{Asc: cloudflare.F(true)}, []string{"first", "second", "third"}},
		{sdk.StreamListParams{Limit: cloudflare.F[int64](2)}, []string{"third", "second"}},
		{sdk.StreamListParams{IncludeCounts: cloudflare.F(true)}, []string{"third", "second", "first"}},
		{sdk.StreamListParams{Creator: cloudflare.F("ann")}, []string{"third", "first"}},
		{sdk.StreamListParams{ID: cloudflare.F("first,third,fourth")}, []string{"third", "first"}},
		{sdk.StreamListParams{Search: cloudflare.F("dAY")}, []string{"second", "first"}},
		{sdk.StreamListParams{VideoName: cloudflare.F("Another Day")}, []string{"second"}},
		{sdk.StreamListParams{Name: cloudflare.F("One fine day,third")}, []string{"third", "first"}},
		{sdk.StreamListParams{After: cloudflare.F(hourAgo)}, []string{"third", "second", "first"}},
		{sdk.StreamListParams{Before: cloudflare.F(hourAgo)}, nil},
		{sdk.StreamListParams{Start: cloudflare.F(hourAgo), End: cloudflare.F(inAnHour)}, []string{"third", "second", "first"}},
		{sdk.StreamListParams{Start: cloudflare.F(inAnHour)}, nil},
		{sdk.StreamListParams{Status: cloudflare.F(sdk.StreamListParamsStatusQueued)}, nil},
		{sdk.StreamListParams{Type: cloudflare.F("live")}, nil},
		{sdk.StreamListParams{Creator: cloudflare.F("ann"), Search: cloudflare.F("day")}, []string{"first"}},
	} {
		if diff := cmp.Diff(tc.want, listedIDs(t, client, tc.params)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.params.URLQuery().Encode(), diff)
		}
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

// The official clients see refusals as the errors that they have for them, and take
// them for final: they would repeat a call that is refused as a conflict or as one
// too many. They do repeat a call when the API is unavailable for a moment.
func TestOfficialClientsTakeRefusalsForFinal(t *testing.T) {
	t.Parallel()
	g := start(t, startOrigin(t, nil), config{api: withAPI, app: "video configured {\n\t\t\trequire_signed_urls on\n\t\t}"})
	const unknown = "0123456789abcdef0123456789abcdef"
	revoke := func(c officialClient) error {
		_, err := c.deleteKey(unknown)
		return err
	}
	edit := func(video string, p sdk.StreamEditParams) func(officialClient) error {
		return func(c officialClient) error {
			_, err := c.edit(video, p)
			return err
		}
	}
	for _, official := range officialClients {
		t.Run(official.name, func(t *testing.T) {
			r := startAPIProxy(t, g)
			base := r.server.URL + "/client/v4"
			client := official.connect(t, clientOptions{BaseURL: base, Token: apiSecret})
			stranger := official.connect(t, clientOptions{BaseURL: base, Token: "another-secret"})
			for _, tc := range []struct {
				client       officialClient
				call         func(officialClient) error
				class        string // of the error in TypeScript
				status, code int
			}{
				{
					client, edit("vid", sdk.StreamEditParams{AllowedOrigins: cloudflare.F([]string{"https://example.com"})}),
					"BadRequestError", http.StatusBadRequest, 10005,
				},
				{stranger, revoke, "AuthenticationError", http.StatusUnauthorized, 10000},
				{
					client, edit("configured", sdk.StreamEditParams{RequireSignedURLs: cloudflare.F(false)}),
					"PermissionDeniedError", http.StatusForbidden, 10002,
				},
				{client, revoke, "NotFoundError", http.StatusNotFound, 10003},
				{
					client, edit("vid", sdk.StreamEditParams{Creator: cloudflare.F(strings.Repeat("a", 70<<10))}),
					"APIError", http.StatusRequestEntityTooLarge, 10006,
				},
			} {
				r.calls.Store(0)
				got, ok := errors.AsType[*clientError](tc.call(tc.client))
				if !ok || len(got.Errors) != 1 {
					t.Fatalf("got %v, want one error %d", got, tc.status)
				}
				if official.name == "Go" {
					tc.class = "" // there is one for all
				}
				if got.Class != tc.class || got.Status != tc.status || got.Errors[0].Code != tc.code {
					t.Errorf("got %v, want %s %d with the code %d", got, tc.class, tc.status, tc.code)
				}
				if n := r.calls.Load(); n != 1 {
					t.Errorf("%d: called %d times", tc.status, n)
				}
			}
			r.calls.Store(0)
			r.away.Store(true)
			if _, err := client.listKeys(); err != nil || r.calls.Load() != 2 {
				t.Errorf("unavailable for a moment: %v after %d calls, want the call repeated once", err, r.calls.Load())
			}
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
	sign func(t testing.TB, key *apiKey) string
}{
	{"jwk in Node", func(t testing.TB, key *apiKey) string { return signInNode(t, key, "jwk") }},
	{"pem in Node", func(t testing.TB, key *apiKey) string { return signInNode(t, key, "pem") }},
	{"jwk in Go", func(t testing.TB, key *apiKey) string { return signInGo(t, key.ID, key.JWK) }},
	{"pem in Go", func(t testing.TB, key *apiKey) string { return signInGo(t, key.ID, key.PEM) }},
}

func signInNode(t testing.TB, key *apiKey, form string) string {
	t.Helper()
	input := mustMarshal(t, generatedKey{ID: key.ID, PEM: key.PEM, JWK: key.JWK, JWKS: json.RawMessage("null")})
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

// A viewer whose key has been revoked does not get the next segment on the
// connection that played the one before, whatever the version of HTTP and whoever
// signed the token. Viewers with other keys do.
func TestRevokedKeyInMidPlay(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, exampleMedia())
	g := startTLS(t, o, config{api: withAPI})
	key, other := g.createKey(t), mint(t, "demo", nil)
	signed := make(map[string]string)
	for _, signer := range offlineSigners {
		signed[signer.name] = signer.sign(t, &key)
	}
	viewers := make([]*http.Client, len(protocols))
	dials := make([]*atomic.Int32, len(protocols))
	each := func(check func(viewer *http.Client, compact string)) {
		for i := range protocols {
			for _, compact := range signed {
				check(viewers[i], compact)
			}
		}
	}
	for i, protocol := range protocols {
		viewers[i], dials[i] = protocol.connect(t, g)
	}
	const first, second = "/video/180p/001.m4s", "/video/180p/002.m4s"
	each(func(viewer *http.Client, compact string) {
		o.wantPassed(t, readResponse(t, g.ask(t, viewer, http.MethodGet, "/"+compact+first)), "/demo"+first)
	})
	g.mustCall(t, http.MethodDelete, "stream/keys/"+key.ID, "", nil)
	each(func(viewer *http.Client, compact string) {
		o.wantRefused(t, readResponse(t, g.ask(t, viewer, http.MethodGet, "/"+compact+second)), http.StatusUnauthorized, "key_unknown")
		o.wantPassed(t, readResponse(t, g.ask(t, viewer, http.MethodGet, "/"+other+second)), "/demo"+second)
	})
	for i, protocol := range protocols {
		if n := dials[i].Load(); n != 1 {
			t.Errorf("%s: %d connections, want one for all requests", protocol.name, n)
		}
	}
}

// A change is in force for the first request after its answer, a revocation as well
// as a setting, also while others change other things.
func TestNoChangeIsLate(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, nil)
	keys := fileKeys(30)
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "keys.json"), publicJWKS(t, keys...))
	g := start(t, o, config{api: withAPI, keys: filepath.Join(dir, "keys.json")})

	ctx, stop := context.WithCancel(t.Context())
	var others sync.WaitGroup
	defer others.Wait()
	defer stop()
	for i := range 2 {
		others.Go(func() {
			for ctx.Err() == nil {
				if err := g.insist(fmt.Sprintf("stream/other-%d", i), `{"creator":"somebody"}`); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i, key := range keys {
		signed := tokenOf(t, key, "vid")
		o.wantPassed(t, g.get(t, "/"+signed+"/video/1.ts"), "/vid/video/1.ts")
		g.mustCall(t, http.MethodDelete, "stream/keys/"+key.ID(), "", nil)
		o.wantRefused(t, g.get(t, "/"+signed+"/video/2.ts"), http.StatusUnauthorized, "key_unknown")

		private := i%2 == 1
		g.edit(t, "vid", fmt.Sprintf(`{"requireSignedURLs":%t}`, private))
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
// the host, the account and the video replaced, and their tokens do what the
// document says.
func TestDocumentWorkers(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, exampleMedia())
	g := start(t, o, config{api: withBothCredentials, app: withCountries(t)})
	blocked, noDownload := verdict{http.StatusForbidden, "rule_blocked"}, verdict{http.StatusForbidden, "download_not_allowed"}
	for script, want := range map[string][]verdict{ // a manifest and a download in the US, and both in GB
		"secure-your-stream-worker.js":       {plays, noDownload, plays, noDownload},
		"secure-your-stream-worker-rules.js": {blocked, blocked, plays, plays},
	} {
		t.Run(script, func(t *testing.T) {
			before := time.Now()
			printed := runScript(t, workerRuntime+filledScript(t, script, map[string]string{
				cloudflareHost:    "http://" + g.api,
				"{ACCOUNT_EMAIL}": apiEmail,
				"{ACCOUNT_KEY}":   apiKeyOf,
				"{ACCOUNT_ID}":    account,
				"{VIDEO_ID}":      "demo",
			}))
			after := time.Now()
			var answer struct {
				Result   sdk.TokenNewResponse `json:"result"`
				Success  bool                 `json:"success"`
				Messages []apiMessage         `json:"messages"`
			}
			if err := json.Unmarshal([]byte(printed), &answer); err != nil || !answer.Success || len(answer.Messages) != 0 {
				t.Fatalf("the script printed %s: %v", printed, err)
			}
			compact := answer.Result.Token
			parsed, err := token.Parse(compact)
			if err != nil {
				t.Fatal(err)
			}
			const hours = 12 * time.Hour
			if exp := parsed.Unverified().ExpiresAt; exp.Before(before.Add(hours).Truncate(time.Second)) || exp.After(after.Add(hours)) {
				t.Errorf("exp is %s ahead, want %s", exp.Sub(before), hours)
			}
			var got []verdict
			for _, viewer := range []string{"127.0.0.1", "127.0.0.2"} {
				for _, suffix := range []string{"/manifest/video.m3u8", "/downloads/default.mp4"} {
					got = append(got, g.getFrom(t, viewer, "/"+compact+suffix).verdict())
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("a manifest and a download, in the US and in GB (-want +got):\n%s", diff)
			}
		})
	}
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
// credential replaced, also the one that sends JSON and says that it is a form.
func TestDocumentCurl(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, nil)
	g := start(t, o, config{api: withAPI})
	tool(t, "curl")
	const video, bearer = "vid", `-H "Authorization: Bearer $TOKEN" `
	variables := "ACCOUNT=" + account + " VIDEOID=" + video + " TOKEN=" + apiSecret + "; "
	run := func(command string, result any) {
		t.Helper()
		if !strings.Contains(command, bearer) { // that line has no credential in the document
			command = strings.Replace(command, "curl ", "curl "+bearer, 1)
		}
		command = strings.NewReplacer(cloudflareHost, "http://"+g.api, "\\\n", " ", "\n", " ").Replace(command)
		ran := execute(t, "", "", "sh", "-c", variables+command)
		var answer apiResponse
		if err := json.Unmarshal([]byte(ran.stdout), &answer); err != nil || ran.code != 0 || !answer.Success {
			t.Fatalf("%s: exit status %d: %v\n%s%s", command, ran.code, err, ran.stdout, ran.stderr)
		}
		if err := json.Unmarshal(answer.Result, result); err != nil {
			t.Fatalf("%s: %v: %s", command, err, answer.Result)
		}
	}
	const manifest = "/" + video + "/manifest/video.m3u8"

	g.edit(t, video, `{"requireSignedURLs":false}`)
	o.wantPassed(t, g.get(t, manifest), manifest)
	var got sdk.Video
	if run(curlRequire, &got); !got.RequireSignedURLs || got.UID != video {
		t.Errorf("the answer is of the video %q, with requireSignedURLs %v", got.UID, got.RequireSignedURLs)
	}
	o.wantRefused(t, g.get(t, manifest), http.StatusUnauthorized, "token_required")

	var minted sdk.TokenNewResponse
	run(curlMint, &minted)
	path := "/" + minted.Token + "/manifest/video.m3u8"
	o.wantPassed(t, g.get(t, path), manifest)

	if run(curlOrigins, &got); !slices.Equal(got.AllowedOrigins, []string{"example.com"}) || !got.RequireSignedURLs {
		t.Errorf("the answer has allowedOrigins %q and requireSignedURLs %v", got.AllowedOrigins, got.RequireSignedURLs)
	}
	o.wantPassed(t, g.get(t, path, "Origin: https://example.com"), manifest)
	if got, want := g.get(t, path, "Origin: https://example.net").verdict(), (verdict{http.StatusForbidden, "origin_not_allowed"}); got != want {
		t.Errorf("from another origin: %v, want %v", got, want)
	}

	var key sdk.Keys
	run(curlCreate, &key)
	signed := "/" + signInGo(t, key.ID, key.Pem) + "/video/1.ts"
	o.wantPassed(t, g.get(t, signed), "/demo/video/1.ts")
	variables = "KEYID=" + key.ID + " " + variables
	var result string
	if run(curlRevoke, &result); result != "Revoked" {
		t.Errorf("the result of a revocation is %q", result)
	}
	o.wantRefused(t, g.get(t, signed), http.StatusUnauthorized, "key_unknown")
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

// A key that the API makes has the form of Cloudflare's. That both encodings are of
// the same pair, TestRevokedKeyInMidPlay shows by signing with them.
func TestKeysOnTheWire(t *testing.T) {
	t.Parallel()
	g := start(t, startOrigin(t, nil), config{api: withAPI})
	key := g.createKey(t)
	if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(key.ID) {
		t.Errorf("the id is %q, want 32 hexadecimal digits", key.ID)
	}
	if _, pair := decodedPEM(t, key.PEM); pair.N.BitLen() != 2048 || pair.E != 65537 {
		t.Errorf("an RSA key of %d bits with e = %d", pair.N.BitLen(), pair.E)
	}
	if _, err := time.Parse(time.RFC3339, key.Created); err != nil || !strings.HasSuffix(key.Created, "Z") {
		t.Errorf("created is %q: %v", key.Created, err)
	}
	listed := string(g.mustCall(t, http.MethodGet, "stream/keys", "", nil).Result)
	if want := fmt.Sprintf(`[{"id":%q,"key_id":%[1]q,"created":%q}]`, key.ID, key.Created); listed != want {
		t.Errorf("the list is %s, want %s", listed, want)
	}
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
