package integration

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// apiSecret authorizes calls of the control API.
const apiSecret = "a-secret-of-the-tests"

// withAPI is for the field api of a config. Caddy logs configs at debug level, so
// credentials are in the environment, which TestMain sets.
const withAPI = "bearer_token {env.API_SECRET}"

// account is the account id of the tests; any will do.
const account = "023e105f4ecef8ad9ca31a8372d0c353"

// apiResponse is an answer of the control API.
type apiResponse struct {
	*response `json:"-"`
	Result    json.RawMessage `json:"result"`
	Success   bool            `json:"success"`
	Errors    []apiMessage    `json:"errors"`
	Messages  []apiMessage    `json:"messages"`
}

type apiMessage struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// apiKey is a key as the API returns it.
type apiKey struct {
	ID      string `json:"id"`
	PEM     string `json:"pem"`
	JWK     string `json:"jwk"`
	Created string `json:"created"`
}

// apiURL returns the address of a resource such as "stream/keys".
func (g *gateway) apiURL(resource string) string {
	return "http://" + g.api + "/client/v4/accounts/" + account + "/" + resource
}

// tryCall calls the API as its owner, with header fields as "Name: value".
func (g *gateway) tryCall(method, resource, body string, header ...string) (*http.Response, error) {
	req, err := http.NewRequest(method, g.apiURL(resource), strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+apiSecret)
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		req.Header.Set(name, value)
	}
	return client.Do(req)
}

// call is tryCall for calls that get an answer, whatever it says.
func (g *gateway) call(t testing.TB, method, resource, body string, header ...string) *apiResponse {
	t.Helper()
	res := must(g.tryCall(method, resource, body, header...))(t)
	return readAPIResponse(t, readResponse(t, res))
}

func readAPIResponse(t testing.TB, res *response) *apiResponse {
	t.Helper()
	out := &apiResponse{response: res}
	dec := json.NewDecoder(bytes.NewReader(res.body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(out); err != nil {
		t.Fatalf("status %d with a body that is no envelope: %v: %.200q", res.StatusCode, err, res.body)
	}
	if res.Request.URL != nil { // not of a raw connection
		wantDescribed(t, res.Request, res.StatusCode, res.Header, res.body)
	}
	if out.Success != (res.StatusCode == http.StatusOK) || out.Success != (len(out.Errors) == 0) {
		t.Errorf("status %d with success %v and the errors %v", res.StatusCode, out.Success, out.Errors)
	}
	return out
}

// mustCall is call for calls that succeed. It decodes the result unless result
// is nil.
func (g *gateway) mustCall(t testing.TB, method, resource, body string, result any) *apiResponse {
	t.Helper()
	res := g.call(t, method, resource, body)
	if res.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: status %d: %s", method, resource, res.StatusCode, res.body)
	}
	if result != nil {
		if err := json.Unmarshal(res.Result, result); err != nil {
			t.Fatalf("%s %s: result %s: %v", method, resource, res.Result, err)
		}
	}
	return res
}

// createKey makes a key with the API.
func (g *gateway) createKey(t testing.TB) (key apiKey) {
	t.Helper()
	g.mustCall(t, http.MethodPost, "stream/keys", "", &key)
	return key
}

// mintToken has the API mint a token for a video.
func (g *gateway) mintToken(t testing.TB, video, body string) string {
	t.Helper()
	var minted struct {
		Token string `json:"token"`
	}
	g.mustCall(t, http.MethodPost, "stream/"+video+"/token", body, &minted)
	return minted.Token
}

// keyIDOf returns the `kid` of a token.
func keyIDOf(t testing.TB, compact string) string {
	t.Helper()
	parsed := must(token.Parse(compact))(t)
	return parsed.Unverified().KeyID
}
