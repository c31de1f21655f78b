package controlapi

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// openAPIFile is the part of the file that its tests read. The integration tests check the
// schemas.
type openAPIFile struct {
	Paths      map[string]map[string]json.RawMessage
	Components struct {
		Parameters map[string]openAPIParameter
	}
}

type openAPIParameter struct {
	Ref  string `json:"$ref"`
	Name string
	In   string
	Enum struct {
		Not struct{ Enum []string }
	} `json:"schema"`
}

func readOpenAPI(t *testing.T) (file openAPIFile) {
	t.Helper()
	if err := json.Unmarshal(openAPI, &file); err != nil {
		t.Fatal(err)
	}
	return file
}

// operations calls a function for each operation of the file, with its method and its path as
// routes have it.
func (f openAPIFile) operations(t *testing.T, each func(method, pattern, path string, id string, parameters []openAPIParameter)) {
	t.Helper()
	for path, item := range f.Paths {
		pattern := strings.TrimPrefix(path, "/")
		if below, ok := strings.CutPrefix(path, "/accounts/{account}/stream"); ok {
			pattern = strings.NewReplacer("{video}", "*", "{id}", "*").Replace(below)
		}
		for method, raw := range item {
			if method == "parameters" {
				continue
			}
			var operation struct {
				OperationID string `json:"operationId"`
				Parameters  []openAPIParameter
			}
			if err := json.Unmarshal(raw, &operation); err != nil {
				t.Fatal(err)
			}
			for i, p := range operation.Parameters {
				if name, shared := strings.CutPrefix(p.Ref, "#/components/parameters/"); shared {
					operation.Parameters[i] = f.Components.Parameters[name]
				}
			}
			each(strings.ToUpper(method), pattern, path, operation.OperationID, operation.Parameters)
		}
	}
}

// Every route of the server is in the file, and the other way round.
func TestOpenAPIHasEveryCall(t *testing.T) {
	t.Parallel()
	described, served := make(map[string]string), map[string]string{"GET openapi.json": describedAPI.name}
	ids := make(map[string]bool)
	readOpenAPI(t).operations(t, func(method, pattern, _, id string, _ []openAPIParameter) {
		described[method+" "+pattern] = id
		ids[id] = true
	})
	for pattern, route := range routes {
		served[pattern] = route.name
	}
	served["GET /sessions"] = "sessions.ofViewer" // ids of operations are unique
	if diff := cmp.Diff(served, described); diff != "" || len(ids) != len(described) {
		t.Errorf("%d ids; routes and operations (-server +file):\n%s", len(ids), diff)
	}
	names := slices.Concat(slices.Collect(maps.Keys(reserved)), reservedVideos)
	slices.Sort(names)
	if diff := cmp.Diff(slices.Compact(names), readOpenAPI(t).Components.Parameters["video"].Enum.Not.Enum); diff != "" {
		t.Errorf("names that are no videos' (-server +file):\n%s", diff)
	}
}

// A list takes the query parameters that the file has for it, and none that it has for others.
func TestOpenAPIHasEveryParameter(t *testing.T) {
	t.Parallel()
	c := watched(t)
	values := map[string]string{
		"limit": "1000", "per_page": "1", "asc": "true", "include_counts": "false", "start": "2026-01-02T03:04:05Z", "after": "2026-01-02T03:04:05Z",
		"end": "2030-01-02T03:04:05.678%2B01:00", "before": "2030-01-02T03:04:05Z", "uid": "anna", "misspelt": "x",
	}
	lists := make(map[string][]string)
	readOpenAPI(t).operations(t, func(method, pattern, path, _ string, parameters []openAPIParameter) {
		var names []string
		for _, p := range parameters {
			if p.In == "query" {
				names = append(names, p.Name)
				values[p.Name] = values[p.Name] + strings.Repeat("x", max(0, 1-len(values[p.Name])))
			}
		}
		if len(names) > 0 && method == http.MethodGet {
			lists[strings.NewReplacer("{account}", "acc", "{video}", "film").Replace(path)] = names
		}
	})
	if len(lists) != 4 {
		t.Errorf("%d lists with parameters, want 4", len(lists))
	}
	for path, names := range lists {
		for name, value := range values {
			query := "?" + name + "=" + value
			if slices.Contains(names, "uid") && name != "uid" {
				query += "&uid=anna"
			}
			want := http.StatusBadRequest
			if slices.Contains(names, name) {
				want = http.StatusOK
			}
			wantReply(t, path+query, c.call(t, "GET", pathPrefix+path+query, ""), want, 0)
		}
	}
}

// The file is served as it is, for callers with a credential only: nothing below the prefix of the API
// tells a stranger anything.
func TestOpenAPIIsServed(t *testing.T) {
	t.Parallel()
	c := control(t, func(config *Config) { config.Account = "acc" })
	for target, want := range map[string]int{
		"/client/v4/openapi.json": 200, "/client/v4/openapi.json?x=1": 200, "/client/v4/openapi.json/": 404, "/client/v4//openapi.json": 404, "/client/v4/%6fpenapi.json": 404,
		"/client/v4/": 404, "/client/v4//keys": 404, "/client/v4/keys": 404, "/client/v4/accounts/acc/openapi.json": 404, "/client/v4/accounts/acc/stream/openapi.json": 400,
	} {
		for credential, status := range map[string]int{apiSecret: want, "a guess": 401} {
			r := request("GET", target, "")
			r.Header.Set("Authorization", "Bearer "+credential)
			w := httptest.NewRecorder()
			c.ServeHTTP(w, r)
			wantHeaders(t, target, w.Code, w.Header())
			if w.Code != status || (w.Body.String() == string(openAPI)) != (status == 200) {
				t.Errorf("GET %s = %d, want %d: %.100s", target, w.Code, status, w.Body)
			}
		}
	}
	wantReply(t, "POST", c.call(t, "POST", "/client/v4/openapi.json", ""), 404, codeRoute)
}
