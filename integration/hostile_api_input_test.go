package integration

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// hostileIDs are segments of a path that name no key, no video and no account.
var hostileIDs = []string{
	"", ".", "..", "...", "%2e", "%2e%2e", "%2E%2E", ".%2e", "%252e%252e",
	"a/b", "a%2fb", "a%2Fb", "a%252fb", `a\b`, "a%5cb", "..%2f..%2fkeys", "%2e%2e%2f%2e%2e", "../keys", "../../keys", `..\..`, "demo/..",
	"%00", "a%00b", "demo%00", "%0a", "a%0d%0ab", "%7f", "%ff", "a%20b", "a+b", "a;b", "a:b", "a*", "%2a", "a%3fb", "a%23b", "$HOME", "a|b", "a,b",
	"%64emo", "dem%6f", "demo%20", "demo.", ".demo", "demo.json", "x-demo.json", "last_clean.json", "CON.json", "nul.txt",
	"\u00e9", "e\u0301", "%c3%a9", "e%cc%81", "\u212a", "%e2%84%aa", "\uff0e\uff0e", "%c0%ae%c0%ae", "%",
	strings.Repeat("a", 65), strings.Repeat("a", 300), strings.Repeat("%61", 64),
}

// mayBeKeyID are those of hostileIDs that a key could have.
var mayBeKeyID = map[string]bool{"...": true, "demo.": true, ".demo": true, "demo.json": true, "x-demo.json": true, "last_clean.json": true, "CON.json": true, "nul.txt": true}

// Whatever stands where an id belongs, encoded or not, names nothing in the
// store but what it is meant to, least of all a folder: Caddy's file storage
// removes whole trees.
func TestHostileAPIIDs(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{api: withAPI})
	key := g.createKey(t)
	g.mintToken(t, "demo", "") // so that the own key is made
	g.mustCall(t, http.MethodPost, "stream/demo", `{"requireSignedURLs":false}`, nil)
	g.mustCall(t, http.MethodPost, "stream/locks", `{"requireSignedURLs":false}`, nil)
	files := g.storage()
	eventually(t, "the server has looked through its storage, as it does at start", func() bool {
		_, cleaned := os.Stat(filepath.Join(files, "last_clean.json"))
		_, cleaning := os.Stat(filepath.Join(files, "locks", "storage_clean.lock"))
		return cleaned == nil && cleaning != nil
	})
	for _, canary := range []string{"canary", "demo.json", "signed_playback/canary"} {
		writeFile(t, filepath.Join(files, filepath.FromSlash(canary)), []byte("not a file of the gateway"))
	}
	before := tree(t, files)

	for _, id := range hostileIDs {
		for _, call := range [][3]string{
			{http.MethodDelete, ofAccount("stream/keys/" + id), ""},
			{http.MethodGet, ofAccount("stream/" + id), ""},
			{http.MethodPost, ofAccount("stream/" + id), `{"requireSignedURLs":true}`},
			{http.MethodDelete, ofAccount("stream/" + id), ""},
			{http.MethodPost, ofAccount("stream/" + id + "/token"), ""},
			{http.MethodGet, "/client/v4/accounts/" + id + "/stream/keys", ""},
			{http.MethodDelete, "/client/v4/accounts/" + id + "/stream/demo", ""},
			{http.MethodDelete, "/client/v4/accounts/" + id + "/stream/keys/" + key.ID, ""},
		} {
			t.Run(fmt.Sprintf("A4 %s %.80q", call[0], strings.Replace(call[1], account, "account", 1)), func(t *testing.T) {
				res := g.onAPI().raw(t, g.apiRequest(call[0], call[1], call[2], authorized))
				want := http.StatusBadRequest
				if strings.HasPrefix(call[1], ofAccount("stream/keys/")) && mayBeKeyID[id] {
					want = http.StatusNotFound
				}
				if res.StatusCode != want && res.StatusCode != http.StatusNotFound {
					t.Errorf("got %d: %.300s; want %d", res.StatusCode, res.body, want)
				}
			})
		}
	}
	for _, id := range []string{
		"audio", "clip", "copy", "direct_upload", "live_inputs", "storage-usage", "videos", "watermarks", "webhook", "keys",
	} {
		t.Run("A4 reserved "+id, func(t *testing.T) {
			for _, call := range [][2]string{{http.MethodPost, "stream/" + id}, {http.MethodDelete, "stream/" + id}, {http.MethodPost, "stream/" + id + "/token"}} {
				if id == "keys" && call[1] == "stream/keys" && call[0] == http.MethodPost {
					continue // makes a key
				}
				if res := g.call(t, call[0], call[1], ""); res.StatusCode != http.StatusBadRequest && res.StatusCode != http.StatusNotFound {
					t.Errorf("%s %s: got %d: %s", call[0], call[1], res.StatusCode, res.body)
				}
			}
		})
	}
	wantSameTree(t, files, before)
}

// Names that some file system or storage takes for one another, or for
// something else, are videos of their own.
func TestHostileAPIIDsApart(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{api: withAPI})
	private := map[string]bool{
		"CON": false, "con": true, "Demo": false, "demo": true, "DEMO": false, "locks": false, "Locks": true, "nul": false,
		"x-demo": false, "signing": true, "current": false, "changes": true, "-": false, "_": true, "--": true, "0": false, "00": true,
		strings.Repeat("A", 64): false, strings.Repeat("a", 64): true,
	}
	for id, want := range private {
		g.mustCall(t, http.MethodPost, "stream/"+id, fmt.Sprintf(`{"requireSignedURLs":%t,"meta":{"name":%q}}`, want, id), nil)
	}
	wantApart := func(t *testing.T) {
		t.Helper()
		for id, want := range private {
			var video struct {
				UID               string            `json:"uid"`
				RequireSignedURLs bool              `json:"requireSignedURLs"`
				Meta              map[string]string `json:"meta"`
			}
			if g.mustCall(t, http.MethodGet, "stream/"+id, "", &video); video.UID != id || video.RequireSignedURLs != want || video.Meta["name"] != id {
				t.Errorf("A4 %s is %+v, want requireSignedURLs %t", id, video, want)
			}
			if want {
				o.wantRefused(t, g.get(t, "/"+id+"/video/1.ts"), http.StatusUnauthorized, "token_required")
			} else {
				o.wantPassed(t, g.get(t, "/"+id+"/video/1.ts"), "/"+id+"/video/1.ts")
			}
		}
	}
	wantApart(t)

	folded := make(map[string]string) // whichever folders they are in
	for file, content := range tree(t, g.storage("signed_playback", "videos")) {
		if content == "a folder" {
			continue
		}
		name := strings.ToLower(filepath.Base(file))
		if before, taken := folded[name]; taken {
			t.Errorf("A4 where case does not count, %s and %s have one name", before, file)
		}
		folded[name] = file
		if device, _, _ := strings.Cut(name, "."); device == "con" || device == "nul" {
			t.Errorf("A4 %s is a device on Windows", file)
		}
	}
	if len(folded) != len(private) {
		t.Errorf("A4 %d videos are in %d files", len(private), len(folded))
	}
	for _, id := range []string{"Demo", "CON", "locks"} {
		g.mustCall(t, http.MethodDelete, "stream/"+id, "", nil)
		o.wantRefused(t, g.get(t, "/"+id+"/video/1.ts"), http.StatusUnauthorized, "token_required")
		delete(private, id)
	}
	wantApart(t)
}

// bodyRow is a body that a call refuses.
type bodyRow struct {
	name    string
	body    string
	message string
}

// A body that two readers could read in two ways, or that is more than a call
// needs, changes nothing.
func TestHostileAPIBodies(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{api: withAPI})
	g.mustCall(t, http.MethodPost, "stream/demo", `{"requireSignedURLs":true,"allowedOrigins":["example.com"],"meta":{"name":"x"}}`, nil)
	files := g.storage("signed_playback")
	before := tree(t, files)
	const maxBody = 64 << 10
	nested := func(depth int) string {
		return `{"meta":` + strings.Repeat(`{"a":`, depth) + "1" + strings.Repeat("}", depth) + "}"
	}
	var zipped bytes.Buffer
	zip := gzip.NewWriter(&zipped)
	fmt.Fprint(zip, `{"requireSignedURLs":false}`)
	_ = zip.Close()

	rows := []bodyRow{
		{"nested deeply", nested(50), "nested too deeply"},
		{"nested to the end", strings.Repeat("[", maxBody), "nested too deeply"},
		{"objects nested to the end", strings.Repeat(`{"a":`, maxBody/5), "nested too deeply"},
		{"a member twice", `{"requireSignedURLs":true,"requireSignedURLs":false}`, "duplicate member"},
		{"a member twice, escaped", `{"requireSignedURLs":true,"requireSignedURL\u0073":false}`, "duplicate member"},
		{"a member twice, inside", `{"meta":{"a":1,"a":2}}`, "duplicate member"},
		{"another case", `{"requireSignedUrls":false}`, `unknown member "requireSignedUrls"`},
		{"another case of all", `{"requireSignedURLS":false}`, `unknown member "requireSignedURLS"`},
		{"both cases", `{"requireSignedURLs":true,"requiresignedurls":false}`, `unknown member "requiresignedurls"`},
		{"the config file's name", `{"require_signed_urls":false}`, `unknown member "require_signed_urls"`},
		{"a long s", `{"require\u017fignedURLs":false}`, "unknown member"},
		{"a member of nothing", `{"":false}`, `unknown member ""`},
		{"a prototype", `{"__proto__":{"requireSignedURLs":false}}`, `unknown member "__proto__"`},
		{"a name that ends the message", `{"\"},\"success\":true,\"x\":\"":1}`, "unknown member"},
		{"a very long name", `{"` + strings.Repeat("x", 60_000) + `":1}`, "unknown member"},
		{"a known and an unknown member", `{"requireSignedURLs":false,"x":1}`, `unknown member "x"`},
		{"two documents", `{}{}`, "invalid syntax"},
		{"two documents, spaced", "{}\n{\"requireSignedURLs\":false}", "invalid syntax"},
		{"text behind", `{"requireSignedURLs":false} x`, "invalid syntax"},
		{"a comma behind", `{"requireSignedURLs":false,}`, "invalid syntax"},
		{"not the end", `{"requireSignedURLs":false`, "invalid syntax"},
		{"a comment", `{"requireSignedURLs":false/**/}`, "invalid syntax"},
		{"single quotes", `{'requireSignedURLs':false}`, "invalid syntax"},
		{"NUL", "\x00", "invalid syntax"},
		{"NUL behind", "{}\x00", "invalid syntax"},
		{"NUL in a string", "{\"creator\":\"a\x00b\"}", "invalid syntax"},
		{"a line break in a string", "{\"creator\":\"a\nb\"}", "invalid syntax"},
		{"invalid UTF-8", "{\"creator\":\"\xff\"}", "UTF-8"},
		{"overlong UTF-8", "{\"creator\":\"\xc0\xae\"}", "UTF-8"},
		{"UTF-16", "{\x00}\x00", "invalid syntax"},
		{"a lone surrogate", `{"creator":"\ud800"}`, "surrogate"},
		{"a byte order mark", "\ufeff{}", "invalid syntax"},
		{"a no-break space", "\u00a0{}", "invalid syntax"},
		{"a form", "requireSignedURLs=false", "invalid syntax"},
		{"a form of JSON", `{"requireSignedURLs":false,"x":"=` + "\r\n" + `"}`, "invalid syntax"},
		{"a multipart form", "--x\r\nContent-Disposition: form-data; name=\"requireSignedURLs\"\r\n\r\nfalse\r\n--x--\r\n", "invalid syntax"},
		{"compressed", zipped.String(), "UTF-8"},
		{"an array", `[{"requireSignedURLs":false}]`, "not a JSON object"},
		{"a string", `"{\"requireSignedURLs\":false}"`, "not a JSON object"},
		{"a number", "0", "not a JSON object"},
		{"false", "false", "not a JSON object"},
	}
	for _, row := range rows {
		for _, resource := range []string{"stream/demo", "stream/demo/token", "stream/keys", "stream/keys/rotate"} {
			t.Run("A5 "+row.name+" to "+resource, func(t *testing.T) {
				res := g.onAPI().raw(t, g.apiRequest(http.MethodPost, ofAccount(resource), row.body, authorized))
				message := row.message
				if strings.HasPrefix(message, "unknown member") || row.name == "nested deeply" {
					message = "" // other calls know other members
				}
				if resource == "stream/demo" {
					message = row.message
				}
				wantAPIError(t, readAPIResponse(t, res), http.StatusBadRequest, message)
				if len(res.body) > 2000 {
					t.Errorf("the answer has %d bytes", len(res.body))
				}
			})
		}
	}
	for _, row := range []bodyRow{
		{"a string for true", `{"requireSignedURLs":"false"}`, "requireSignedURLs"},
		{"a number for true", `{"requireSignedURLs":0}`, "requireSignedURLs"},
		{"null for true", `{"requireSignedURLs":null}`, "requireSignedURLs"},
		{"the uid of another video", `{"uid":"other","requireSignedURLs":false}`, "uid"},
		{"origins as a string", `{"allowedOrigins":"example.com"}`, "allowedOrigins is not an array"},
		{"origins as numbers", `{"allowedOrigins":[1]}`, "want strings"},
		{"no origins", `{"allowedOrigins":null}`, "allowedOrigins is not an array"},
		{"an origin with a scheme", `{"allowedOrigins":["https://example.com"]}`, "allowed origin must not specify protocol"},
		{"an origin with a path", `{"allowedOrigins":["example.com/x"]}`, "example.com/x"},
		{"an origin with a header in it", `{"allowedOrigins":["example.com\r\nX-Evil: 1"]}`, "allowed"},
		{"an origin with a policy in it", `{"allowedOrigins":["example.com; script-src *"]}`, "allowed"},
		{"an empty origin", `{"allowedOrigins":[""]}`, "allowed"},
		{"too many origins", `{"allowedOrigins":[` + strings.Repeat(`"a.example.com",`, 300) + `"b.example.com"]}`, "200"},
		{"origins that are too long", `{"allowedOrigins":[` + strings.TrimSuffix(strings.Repeat(`"`+strings.Repeat("abcdefg.", 25)+`com",`, 100), ",") + `]}`, "longer than"},
		{"meta as a string", `{"meta":"x"}`, "meta"},
		{"a number as a string", `{"thumbnailTimestampPct":"0.5"}`, "thumbnailTimestampPct"},
		{"a date that is none", `{"scheduledDeletion":"tomorrow"}`, "scheduledDeletion"},
		{"a creator that is a number", `{"creator":1}`, "creator"},
	} {
		t.Run("A5 "+row.name, func(t *testing.T) {
			wantAPIError(t, g.call(t, http.MethodPost, "stream/demo", row.body), http.StatusBadRequest, row.message)
		})
	}
	t.Run("A5 garbage with calls that take no body", func(t *testing.T) {
		for _, call := range [][2]string{{http.MethodGet, "stream"}, {http.MethodDelete, "stream/demo"}, {http.MethodDelete, "stream/keys/" + keyID}} {
			res := g.onAPI().raw(t, g.apiRequest(call[0], ofAccount(call[1]), "garbage", authorized))
			wantAPIError(t, readAPIResponse(t, res), http.StatusBadRequest, "invalid syntax")
		}
	})

	padded := func(size int, body string) string { return body + strings.Repeat(" ", size-len(body)) }
	for name, request := range map[string]string{
		"one byte too long":         g.apiRequest(http.MethodPost, ofAccount("stream/demo"), padded(maxBody+1, `{"requireSignedURLs":false}`), authorized),
		"one byte too long, chunks": chunked(g, maxBody+1),
		"100 MB announced": rawRequest(http.MethodPost, ofAccount("stream/demo"), "Host: "+g.api, authorized, "Content-Length: 104857600") +
			padded(maxBody+1, `{"requireSignedURLs":false}`),
		"one byte of space too long": g.apiRequest(http.MethodPost, ofAccount("stream/demo/token"), padded(maxBody+1, ""), authorized),
	} {
		t.Run("A5 "+name, func(t *testing.T) {
			res := readAPIResponse(t, g.onAPI().raw(t, request))
			wantAPIError(t, res, http.StatusRequestEntityTooLarge, fmt.Sprint(maxBody))
		})
	}
	t.Run("A5 less than announced", func(t *testing.T) {
		conn, err := net.Dial("tcp", g.api)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, rawRequest(http.MethodPost, ofAccount("stream/demo"), "Host: "+g.api, authorized, "Content-Length: 100")+`{"requireSignedURLs":false}`)
		_ = conn.(*net.TCPConn).CloseWrite()
		_ = conn.SetDeadline(time.Now().Add(startTimeout))
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		wantAPIError(t, readAPIResponse(t, readResponse(t, res)), http.StatusBadRequest, "could not be read")
	})
	wantSameTree(t, files, before)
	g.wantVideo(t, "demo", `{"requireSignedURLs":true,"allowedOrigins":["example.com"],"meta":{"name":"x"}}`)

	for _, contentType := range []string{"", "application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json; charset=utf-16"} {
		t.Run(fmt.Sprintf("A5 as long as may be, as %q", contentType), func(t *testing.T) {
			header := []string{authorized}
			if contentType != "" {
				header = append(header, "Content-Type: "+contentType)
			}
			body := padded(maxBody, fmt.Sprintf(`{"creator":%q}`, contentType))
			res := readAPIResponse(t, g.onAPI().raw(t, g.apiRequest(http.MethodPost, ofAccount("stream/demo"), body, header...)))
			if res.StatusCode != http.StatusOK {
				t.Errorf("got %d: %s", res.StatusCode, res.body)
			}
			g.wantVideo(t, "demo", fmt.Sprintf(`{"creator":%q,"requireSignedURLs":true}`, contentType))
		})
	}
}

// chunked is a call with a body of a size that it does not announce.
func chunked(g *gateway, size int) string {
	return rawRequest(http.MethodPost, ofAccount("stream/demo"), "Host: "+g.api, authorized, "Transfer-Encoding: chunked") +
		fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", size, strings.Repeat(" ", size))
}

// wantVideo checks some members of a video.
func (g *gateway) wantVideo(t testing.TB, id, members string) {
	t.Helper()
	var want, got map[string]json.RawMessage
	if err := json.Unmarshal([]byte(members), &want); err != nil {
		t.Fatal(err)
	}
	g.mustCall(t, http.MethodGet, "stream/"+id, "", &got)
	for name, value := range want {
		if string(got[name]) != string(value) {
			t.Errorf("%s of %s is %s, want %s", name, id, got[name], value)
		}
	}
}

// A client that reads a video, changes it and sends all of it back means what it
// sends; that is no attack.
func TestUsualAPIBodies(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{api: withAPI, app: "public_url https://media.example.com"})
	whole := g.mustCall(t, http.MethodPost, "stream/demo", `{"requireSignedURLs":false,"allowedOrigins":["*.example.com"],"meta":{"name":"x"},"scheduledDeletion":"2090-01-02T15:04:05Z"}`, nil).Result
	again := g.mustCall(t, http.MethodPost, "stream/demo", string(whole), nil).Result
	var before, after map[string]json.RawMessage
	for raw, into := range map[string]*map[string]json.RawMessage{string(whole): &before, string(again): &after} {
		if err := json.Unmarshal([]byte(raw), into); err != nil {
			t.Fatal(err)
		}
	}
	for name, value := range before {
		if name != "modified" && string(after[name]) != string(value) {
			t.Errorf("%s was %s and is %s", name, value, after[name])
		}
	}
	for _, body := range []string{"", " \n", "null", "{}"} {
		g.mustCall(t, http.MethodPost, "stream/demo", body, nil)
		g.wantVideo(t, "demo", `{"requireSignedURLs":false,"allowedOrigins":["*.example.com"],"meta":{"name":"x"}}`)
	}
}
