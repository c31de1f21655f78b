package manifest_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/manifest"
)

// assetsHere is where the asset lists of the tests are.
var assetsHere = manifest.Location{Path: here.Path, Folder: here.Folder, Hosts: here.Hosts, Base: "https://" + viewerHost + viewerRoot}

// assetCases are asset lists, and the results. An empty want means that the list stays as it is.
var assetCases = []struct{ name, in, want string }{
	{"F14 assets in the folder", `{"ASSETS":[{"URI":"https://origin.example/library/vidA/v1/ads/1.m3u8?a=b&c","DURATION":15.0},{ "URI" : "\/library\/vidA\/v1\/ads\/2.m3u8" , "DURATION":1}]}`, `{"ASSETS":[{"URI":"https://gw.example/mount/TOKEN/ads/1.m3u8?a=b&c","DURATION":15.0},{ "URI" : "https://gw.example/mount/TOKEN/ads/2.m3u8" , "DURATION":1}]}`},
	{"F14 members after others, twice, escaped and of vendors", "\ufeff \n{\"SKIP-CONTROL\":{\"ASSETS\":1},\"X-A\":[{\"ASSETS\":[]}],\"ASSETS\":[{\"URI\":\"x\",\"\\u0055RI\":\"/library/vidA/v1/y\",\"X-LOGO\":\"/library/vidA/v1/l.png\",\"X-TEXT\":\"/library/vidA/v1 is it\",\"NAME\":\"/library/vidA/v1/\"}],\"\\u0041SSETS\":[{\"URI\":\"/library/vidA/v1/\\u00e9\\\"\"}]}", "\ufeff \n{\"SKIP-CONTROL\":{\"ASSETS\":1},\"X-A\":[{\"ASSETS\":[]}],\"ASSETS\":[{\"URI\":\"x\",\"\\u0055RI\":\"https://gw.example/mount/TOKEN/y\",\"X-LOGO\":\"https://gw.example/mount/TOKEN/l.png\",\"X-TEXT\":\"/library/vidA/v1 is it\",\"NAME\":\"/library/vidA/v1/\"}],\"\\u0041SSETS\":[{\"URI\":\"https://gw.example/mount/TOKEN/é\\\"\"}]}"},
	{"F14 assets with spaces in names", `{"ASSETS":[{"URI":"/library/vidA/v1/my ad.m3u8"}]}`, `{"ASSETS":[{"URI":"https://gw.example/mount/TOKEN/my ad.m3u8"}]}`},
	{"F14 assets elsewhere", `{"ASSETS":[{"URI":"https://ads.example/library/vidA/v1/1.m3u8"},{"URI":"/library/vidB/v1/1.m3u8"},{"URI":"1.m3u8"},{"URI":7},{"URI":null},{"URI":["/library/vidA/v1/x"]},"/library/vidA/v1/x",["URI","/library/vidA/v1/x"],{"A":{"URI":"/library/vidA/v1/x"}}]}`, ""},
	{"F14 no array", `{"ASSETS":{"1":{"URI":"/library/vidA/v1/x"}},"B":[{"URI":"/library/vidA/v1/x"}]}`, ""},
	{"F14 no JSON", `{"ASSETS":[{"URI":"/library/vidA/v1/x"},]}`, ""},
	{"F14 more than one document", `{"ASSETS":[{"URI":"/library/vidA/v1/x"}]} {"ASSETS":[]}`, ""},
}

func TestAssetList(t *testing.T) {
	t.Parallel()
	for _, tc := range assetCases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if f := formatOf(tc.in); f != manifest.AssetList {
				t.Errorf("Sniff = %d", f)
			}
			want := tc.want
			if want == "" {
				want = tc.in
			}
			got, _, err := manifest.Rewrite(nil, []byte(tc.in), manifest.AssetList, assetsHere, "", 0)
			if err != nil || string(got) != want {
				t.Errorf("Rewrite = %s, %v, want %s", got, err, want)
			}
		})
	}
	for body, undecided := range map[string]bool{
		`{}`: false, `{"assets":[]}`: false, `{"A":{"ASSETS":[]}}`: false, `{]`: false, `{"a":1} {"ASSETS":[]}`: false, `[{"ASSETS":[]}]`: false,
		`{`: true, `{"ASS`: true, `{"A":[1,2,`: true, " {\n": true,
	} {
		if f, more := manifest.Sniff([]byte(body)); f != 0 || more != undecided {
			t.Errorf("Sniff(%q) = %d, undecided %t", body, f, more)
		}
	}
}

// FuzzAssetList checks with a JSON parser that only URIs of assets change, and that they then lead
// to the same file.
func FuzzAssetList(f *testing.F) {
	for _, tc := range assetCases {
		f.Add([]byte(tc.in))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		out, stats, err := manifest.Rewrite(nil, body, manifest.AssetList, assetsHere, "", 0)
		if err != nil || stats.Rewritten == 0 {
			if err == nil && string(out) != string(body) {
				t.Fatalf("%q became %q", body, out)
			}
			return
		}
		before, after := assetsOf(t, body), assetsOf(t, out)
		for i, assets := range before.assets {
			for name, value := range assets {
				was, isText := value.(string)
				if is, _ := after.assets[i][name].(string); isText && is != was && (name == "URI" || strings.HasPrefix(name, "X-")) {
					if why := judge(here, visit(originSpot(here), was), visit(viewerSpot(here), is), was, is); why != "" {
						t.Errorf("%q became %q: %s", was, is, why)
					}
					delete(assets, name)
					delete(after.assets[i], name)
				}
			}
		}
		if diff := cmp.Diff(before.all, after.all); diff != "" {
			t.Errorf("more than URIs changed (-before +after):\n%s", diff)
		}
	})
}

// parsedAssets is an asset list as a JSON parser reads it.
type parsedAssets struct {
	all    any
	assets []map[string]any // parts of all
}

func assetsOf(t *testing.T, body []byte) (p parsedAssets) {
	t.Helper()
	if err := json.Unmarshal([]byte(strings.TrimPrefix(string(body), "\ufeff")), &p.all); err != nil {
		t.Fatalf("%q: %v", body, err)
	}
	root, _ := p.all.(map[string]any)
	list, _ := root["ASSETS"].([]any)
	for _, item := range list {
		asset, _ := item.(map[string]any)
		p.assets = append(p.assets, asset)
	}
	return p
}
