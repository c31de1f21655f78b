package signedplayback

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write what the tests expect into testdata")

// separator stands between a Caddyfile and what becomes of it: JSON or an
// error. It is the format of Caddy's own tests.
const separator = "----------\n"

// adapt returns what a Caddyfile adapts to, the config or the error, as it
// stands in a golden file.
func adapt(t *testing.T, text string) string {
	t.Helper()
	result, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return err.Error() + "\n"
	}
	for _, warning := range warnings {
		t.Errorf("warning: %s", warning)
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, result, "", "\t"); err != nil {
		t.Fatal(err)
	}
	return indented.String() + "\n"
}

// Each file of testdata/caddyfile is a Caddyfile and what it adapts to.
func TestCaddyfile(t *testing.T) {
	t.Parallel()
	files := must(filepath.Glob("testdata/caddyfile/*.caddyfiletest"))
	if len(files) < 40 {
		t.Errorf("testdata/caddyfile has %d files: some are missing", len(files))
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".caddyfiletest"), func(t *testing.T) {
			golden := strings.ReplaceAll(string(must(os.ReadFile(file))), "\r\n", "\n")
			text, want, _ := strings.Cut(golden, separator)
			got := adapt(t, text)
			if *update {
				if err := os.WriteFile(file, []byte(text+separator+got), 0o600); err != nil {
					t.Fatal(err)
				}
				want = got
			}
			// Options that move a gate to another line do not matter.
			if diff := cmp.Diff(sourceLine.ReplaceAllString(want, ""), sourceLine.ReplaceAllString(got, "")); diff != "" {
				t.Errorf("what the Caddyfile adapts to (-want +got):\n%s", diff)
			}
			checkGolden(t, file, text, got)
		})
	}
}

var (
	errorLine  = regexp.MustCompile(`Caddyfile:(\d+)`)
	sourceLine = regexp.MustCompile(`(?m)"source": "Caddyfile:\d+"`)
	mistake    = regexp.MustCompile(`(?m)^.*# mistake: (.*)$`)
)

// checkGolden holds what every file must show: a config is one that Caddy
// loads, in the form of caddy fmt, and an error names the value and the line of
// what is wrong. The line is the one with the comment "# mistake: value".
func checkGolden(t *testing.T, file, text, got string) {
	t.Helper()
	isError := strings.HasPrefix(filepath.Base(file), "error_")
	if isError == strings.HasPrefix(got, "{") {
		t.Fatalf("it adapts to %s", got)
	}
	if !isError {
		if formatted := string(caddyfile.Format([]byte(text))); formatted != text {
			t.Errorf("not as caddy fmt would have it (-want +got):\n%s", cmp.Diff(formatted, text))
		}
		var cfg caddy.Config
		if err := caddy.StrictUnmarshalJSON([]byte(got), &cfg); err != nil {
			t.Errorf("the config does not decode: %v", err)
		}
		return
	}
	mistakes := mistake.FindAllStringSubmatchIndex(text, -1)
	if len(mistakes) != 1 {
		t.Fatalf("%d lines with the comment `# mistake: value`, want 1", len(mistakes))
	}
	value := text[mistakes[0][2]:mistakes[0][3]]
	if !strings.Contains(got, value) {
		t.Errorf("the error does not name the value %s: %s", value, got)
	}
	wantLine := strconv.Itoa(1 + strings.Count(text[:mistakes[0][0]], "\n"))
	lines := errorLine.FindAllStringSubmatch(got, -1)
	if len(lines) == 0 || lines[len(lines)-1][1] != wantLine {
		t.Errorf("the error does not name line %s: %s", wantLine, got)
	}
}

// An option in the wrong block is an error that names the right blocks. A misspelt one is
// an error that names the option, and its blocks if they are others.
func TestUnknownOptionsHaveHints(t *testing.T) {
	t.Parallel()
	right := make(map[string][]string) // the places of each option
	for _, place := range caddyfileBlocks().Places {
		for name := range place.Options() {
			right[name] = append(right[name], place.Name)
		}
	}
	for _, place := range caddyfileBlocks().Places {
		here := place.Options()
		for name, places := range right {
			if len(name) < 3 {
				continue // half of it is a misspelling of anything
			}
			middle := len(name) / 2
			misspelt := []string{
				name[:middle] + name[middle+1:], name + "s", strings.ToUpper(name), strings.ReplaceAll(name, "_", ""), strings.ReplaceAll(name, "_", "-"),
				name[:middle] + name[middle+1:middle+2] + name[middle:middle+1] + name[middle+2:],
			}
			if here[name] == nil {
				misspelt = misspelt[:1] // the others are tried in the places of the option
			}
			for _, word := range append(misspelt, name) {
				if here[word] != nil || word != name && right[word] != nil {
					continue
				}
				hint := caddyfileBlocks().Hint(word, here)
				var wants []string
				if here[name] == nil {
					wants = append(wants, places...)
				}
				if word != name {
					wants = append(wants, `did you mean "`+name+`"`)
				}
				for _, want := range wants {
					if !strings.Contains(hint, want) {
						t.Errorf("%s in %s: the hint is %q, want one with %q", word, place.Name, hint, want)
					}
				}
			}
		}
		for word, want := range map[string]string{"reverse_proxy": "directive of Caddy", "zzz": "", "log_level_of_the_server": ""} {
			if hint := caddyfileBlocks().Hint(word, here); !strings.Contains(hint, want) || want == "" && hint != "" {
				t.Errorf("%s in %s: the hint is %q, want %q", word, place.Name, hint, want)
			}
		}
	}
}
