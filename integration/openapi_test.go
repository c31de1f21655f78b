package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// openAPIFile is the description of the control API, with its schemas compiled on first use.
type openAPIFile struct {
	document map[string]any
	mu       sync.Mutex
	compiler *jsonschema.Compiler
}

var openAPI = sync.OnceValue(func() *openAPIFile {
	f, err := os.Open("../internal/controlapi/openapi.json")
	if err != nil {
		panic(err)
	}
	defer f.Close()
	document, err := jsonschema.UnmarshalJSON(f)
	if err != nil {
		panic(err)
	}
	file := &openAPIFile{document: document.(map[string]any), compiler: jsonschema.NewCompiler()}
	file.compiler.AssertFormat()
	if err := file.compiler.AddResource("file:///openapi.json", document); err != nil {
		panic(err)
	}
	return file
})

// at returns what a path of names leads to, through references, nil for nothing, and its place in
// the file.
func (f *openAPIFile) at(names ...string) (found map[string]any, place string) {
	found, place = f.document, "#"
	for _, name := range names {
		found, _ = found[name].(map[string]any)
		place += "/" + strings.NewReplacer("~", "~0", "/", "~1", "{", "%7B", "}", "%7D").Replace(name)
		if ref, ok := found["$ref"].(string); ok {
			found, place = f.at(strings.Split(strings.TrimPrefix(ref, "#/"), "/")...)
		}
	}
	return found, place
}

// validate checks a value against the schema at a place.
func (f *openAPIFile) validate(place string, value any) error {
	f.mu.Lock()
	schema, err := f.compiler.Compile("file:///openapi.json" + place)
	f.mu.Unlock()
	if err != nil {
		return err
	}
	return schema.Validate(value)
}

// operation returns the path of the file that a request path belongs to, "" for none.
func (f *openAPIFile) operation(method, path string) (found string) {
	paths, _ := f.at("paths")
	segments := strings.Split(strings.TrimPrefix(path, "/client/v4"), "/")
	for template := range paths {
		parts := strings.Split(template, "/")
		matches := len(parts) == len(segments)
		for i := range parts {
			matches = matches && (parts[i] == segments[i] || strings.HasPrefix(parts[i], "{") && segments[i] != "")
		}
		operation, _ := f.at("paths", template, strings.ToLower(method))
		// What is written in full comes before what stands for any.
		if matches && operation != nil && (found == "" || strings.Count(template, "{") < strings.Count(found, "{")) {
			found = template
		}
	}
	return found
}

const jsonType = "application/json"

// wantDescribed checks an exchange with the API against its description: the answer is one that the
// call may have, and a body that was accepted is one that it may get.
func wantDescribed(t testing.TB, request *http.Request, status int, header http.Header, answer []byte) {
	t.Helper()
	f := openAPI()
	what := request.Method + " " + request.URL.Path
	_, place := f.at("components", "responses", "Refused", "content", jsonType, "schema")
	if template := f.operation(request.Method, request.URL.Path); template != "" {
		method, code := strings.ToLower(request.Method), fmt.Sprint(status)
		if status != http.StatusOK {
			code = fmt.Sprint(status/100) + "XX"
		}
		var known map[string]any
		if known, place = f.at("paths", template, method, "responses", code, "content", jsonType, "schema"); known == nil {
			t.Errorf("%s: the status %d is not described", what, status)
			return
		}
		if body, schema := f.at("paths", template, method, "requestBody", "content", jsonType, "schema"); body != nil && status == http.StatusOK && request.GetBody != nil {
			sent, _ := request.GetBody()
			text, _ := io.ReadAll(sent)
			if value, err := jsonschema.UnmarshalJSON(bytes.NewReader(text)); len(text) > 0 {
				if err == nil {
					err = f.validate(schema, value)
				}
				if err != nil {
					t.Errorf("%s: the API accepts %.300s, and its description does not: %v", what, text, err)
				}
			}
		}
	} else if status == http.StatusOK {
		t.Errorf("%s is answered, and not described", what)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(answer))
	if err == nil {
		err = f.validate(place, value)
	}
	if err != nil {
		t.Errorf("%s = %d %.300s: %v", what, status, answer, err)
	}
	for name, want := range map[string]string{"Content-Type": jsonType, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Access-Control-Allow-Origin": ""} {
		if got := header.Get(name); got != want {
			t.Errorf("%s has %s %q, want %q", what, name, got, want)
		}
	}
}

// sampler makes values that a schema permits, and beyond that the members which mean something
// outside the schema: dates, ids, tokens.
type sampler struct {
	*openAPIFile
	random  *rand.Rand
	members map[string][]any
}

func (s *sampler) pick(values []any) any { return values[s.random.IntN(len(values))] }

// value makes a value for a schema of request bodies.
func (s *sampler) value(schema map[string]any) any {
	if ref, ok := schema["$ref"].(string); ok {
		schema, _ = s.at(strings.Split(strings.TrimPrefix(ref, "#/"), "/")...)
	}
	for _, keyword := range []string{"examples", "enum"} {
		if values, ok := schema[keyword].([]any); ok {
			return s.pick(values)
		}
	}
	if constant, ok := schema["const"]; ok {
		return constant
	}
	for _, keyword := range []string{"anyOf", "oneOf"} {
		if branches, ok := schema[keyword].([]any); ok {
			branch := s.pick(branches).(map[string]any)
			if schema["properties"] == nil {
				return s.value(branch)
			}
			return s.object(schema, branch)
		}
	}
	kind, _ := schema["type"].(string)
	if kinds, ok := schema["type"].([]any); ok {
		kind = s.pick(kinds).(string)
	}
	switch kind {
	case "object":
		return s.object(schema, nil)
	case "array":
		items := make([]any, s.count(schema, "minItems", "maxItems", 5))
		for i := range items {
			items[i] = s.value(schema["items"].(map[string]any))
		}
		return items
	case "string":
		if schema["format"] == "date-time" {
			return "2030-01-02T03:04:05.678+01:00"
		}
		if schema["pattern"] == "^[A-Za-z]{2}$" {
			return "gb"
		}
		return strings.Repeat("a", s.count(schema, "minLength", "maxLength", 20))
	case "integer":
		return json.Number(fmt.Sprint(s.count(schema, "minimum", "maximum", 1000)))
	case "number":
		return json.Number("0.50")
	case "boolean":
		return s.random.IntN(2) == 0
	case "null":
		return nil
	default: // any
		return s.pick([]any{nil, true, "x", json.Number("1e3"), []any{"<b>"}, map[string]any{"a": nil}})
	}
}

// count makes a number between two bounds of a schema, often a bound itself.
func (s *sampler) count(schema map[string]any, least, most string, otherwise int) int {
	bound := func(keyword string, otherwise int) int {
		if number, ok := schema[keyword].(json.Number); ok {
			n, _ := number.Int64()
			return int(n)
		}
		return otherwise
	}
	low := bound(least, 0)
	high := bound(most, low+otherwise)
	return []int{low, high, low + s.random.IntN(min(high-low, otherwise)+1)}[s.random.IntN(3)]
}

// object makes an object with the required members, those of one branch, and some of the optional
// members.
func (s *sampler) object(schema, branch map[string]any) map[string]any {
	object := make(map[string]any)
	properties, _ := schema["properties"].(map[string]any)
	own, _ := branch["properties"].(map[string]any)
	required := append(texts(schema["required"]), texts(branch["required"])...)
	others, _ := schema["oneOf"].([]any)
	for name := range properties {
		elsewhere := slices.ContainsFunc(others, func(other any) bool { return slices.Contains(texts(other.(map[string]any)["required"]), name) })
		without, _ := branch["not"].(map[string]any)
		elsewhere = elsewhere || slices.Contains(texts(without["required"]), name)
		if !slices.Contains(required, name) && (elsewhere || s.random.IntN(2) == 0) {
			continue
		}
		member, _ := properties[name].(map[string]any)
		if narrower, ok := own[name].(map[string]any); ok {
			member = narrower
		}
		if samples, ok := s.members[name]; ok {
			object[name] = s.pick(samples)
		} else {
			object[name] = s.value(member)
		}
	}
	return object
}

func texts(value any) (list []string) {
	values, _ := value.([]any)
	for _, text := range values {
		list = append(list, text.(string))
	}
	return list
}

// damage changes a value at a random place into one that the schema probably does not permit.
func (s *sampler) damage(value any) any {
	switch value := value.(type) {
	case map[string]any:
		names := make([]string, 0, len(value))
		for name := range value {
			names = append(names, name)
		}
		slices.Sort(names)
		switch {
		case s.random.IntN(4) == 0:
			value[s.pick([]any{"misspelt", "Exp", "require_signed_urls", "uid ", ""}).(string)] = true
		case len(names) > 0 && s.random.IntN(4) == 0:
			delete(value, names[s.random.IntN(len(names))])
		case len(names) > 0:
			name := names[s.random.IntN(len(names))]
			value[name] = s.damage(value[name])
		default:
			return s.pick([]any{[]any{}, "x", true, json.Number("0")})
		}
		return value
	case []any:
		if len(value) > 0 && s.random.IntN(2) == 0 {
			value[0] = s.damage(value[0])
			return value
		}
		if len(value) > 0 && s.random.IntN(2) == 0 {
			return slices.Repeat(value[:1], 1001)
		}
		return s.pick([]any{"x", map[string]any{}, json.Number("1"), []any{nil}})
	case string:
		return s.pick([]any{"", strings.Repeat(value+"x", 300), json.Number("1"), nil, []any{value}, true, "\u0000"})
	case json.Number:
		return s.pick([]any{json.Number("-1"), json.Number("0"), json.Number("1.5"), value.String(), nil, json.Number(fmt.Sprint(uint64(math.MaxUint64))), json.Number("4294967296")})
	default:
		return s.pick([]any{"true", json.Number("1"), []any{}, map[string]any{}})
	}
}

// The API accepts the bodies that its description permits, and refuses those that it forbids. The
// bodies are generated from the description. Every call of it is made.
func TestAPIIsAsDescribed(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, exampleMedia())
	g := start(t, o, config{api: withAPI, quick: true, log: quiet, app: "sessions on\nmax_session 48h\nmax_token_lifetime 24h"})
	compact := g.mintToken(t, "demo", `{"uid":"anna"}`)
	if res := g.get(t, "/"+compact+"/manifest/video.m3u8"); res.StatusCode != http.StatusOK {
		t.Fatalf("the manifest: %d", res.StatusCode)
	}
	var sessions []struct{ ID string }
	g.mustCall(t, "GET", "stream/sessions?uid=anna", "", &sessions)
	var made struct{ ID string }
	g.mustCall(t, "POST", "stream/revocations", `{"jti":"x","expires":`+fmt.Sprint(time.Now().Add(time.Hour).Unix())+`}`, &made)
	key := g.createKey(t)
	in := func(d time.Duration) any { return json.Number(fmt.Sprint(time.Now().Add(d).Unix())) }
	zero := json.Number("0")
	s := &sampler{openAPI(), rand.New(rand.NewPCG(19, 3)), map[string][]any{
		"exp": {zero, in(time.Hour), in(24*time.Hour - time.Minute)}, "nbf": {zero, json.Number("1"), in(-time.Minute)}, "startBy": {in(time.Hour)}, "until": {in(time.Hour), in(24 * time.Hour)},
		"issuedBefore": {json.Number("1"), in(0), json.Number("253402300799")}, "expires": {in(time.Hour), json.Number("253402300799")},
		"availableFrom": {nil, "2020-01-02T03:04:05Z"}, "availableUntil": {nil, "2099-01-02T03:04:05+01:00"},
		"token": {compact}, "url": {g.url("/" + compact + "/x.ts"), g.url("/demo/x.ts")},
	}}
	fill := strings.NewReplacer("{account}", account, "{video}", "demo")
	paths, _ := s.at("paths")
	permitted, forbidden := 0, 0
	for template, item := range paths {
		for method := range item.(map[string]any) {
			if method == "parameters" {
				continue
			}
			path := fill.Replace(template)
			for resource, id := range map[string]string{"keys": key.ID, "sessions": sessions[0].ID, "revocations": made.ID} {
				path = strings.Replace(path, resource+"/{id}", resource+"/"+id, 1)
			}
			resource := strings.TrimPrefix(path, "/accounts/"+account+"/")
			if strings.HasSuffix(path, "/sessions") && !strings.Contains(path, "demo") {
				resource += "?uid=anna"
			}
			schema, place := s.at("paths", template, method, "requestBody", "content", jsonType, "schema")
			switch {
			case template == "/openapi.json":
				continue
			case method == "delete": // at the end, because other calls need what it deletes
				defer g.mustCall(t, "DELETE", resource, "", nil)
				continue
			case schema == nil:
				g.mustCall(t, strings.ToUpper(method), resource, "", nil)
				continue
			}
			times := 150
			if strings.HasSuffix(path, "/keys") || strings.HasSuffix(path, "/rotate") {
				times = 5 // RSA keys take long
			}
			for range times {
				value := s.value(schema)
				if object, ok := value.(map[string]any); ok && object["id"] != nil || ok && object["pem"] != nil {
					object["id"], object["pem"] = key.ID, key.PEM
				}
				body, _ := json.Marshal(value)
				if err := s.validate(place, value); err != nil {
					t.Fatalf("%s: the sample %s is not permitted: %v", template, body, err)
				}
				if res := g.call(t, strings.ToUpper(method), resource, string(body)); res.StatusCode != http.StatusOK {
					t.Errorf("%s: the description permits %.300s, and the API answers %d: %s", template, body, res.StatusCode, res.body)
				}
				permitted++
				copied, _ := jsonschema.UnmarshalJSON(bytes.NewReader(body))
				damaged := s.damage(copied)
				if s.validate(place, damaged) == nil {
					continue
				}
				body, _ = json.Marshal(damaged)
				if res := g.call(t, strings.ToUpper(method), resource, string(body)); res.StatusCode != http.StatusBadRequest && res.StatusCode != http.StatusRequestEntityTooLarge {
					t.Errorf("%s: the description forbids %.300s, and the API answers %d: %.300s", template, body, res.StatusCode, res.body)
				}
				forbidden++
			}
		}
	}
	if permitted < 500 || forbidden < 300 {
		t.Errorf("%d permitted and %d forbidden bodies, want more", permitted, forbidden)
	}
	served := send(t, client, "GET", "http://"+g.api+"/client/v4/openapi.json", "", authorized)
	file, err := os.ReadFile("../internal/controlapi/openapi.json")
	if err != nil || served.StatusCode != http.StatusOK || !bytes.Equal(served.body, file) {
		t.Errorf("the file is served as %d %.100s, %v", served.StatusCode, served.body, err)
	}
}
