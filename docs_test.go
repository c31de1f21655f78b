package signedplayback

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"go/types"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/dustin/go-humanize"
	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
)

func page(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// sections splits a page at its headings of a level ("##"), by their texts
// without backticks.
func sections(text, level string) map[string]string {
	parts := make(map[string]string)
	_, text, _ = strings.Cut("\n"+text, "\n"+level+" ")
	for part := range strings.SplitSeq(text, "\n"+level+" ") {
		heading, body, _ := strings.Cut(part, "\n")
		parts[strings.ReplaceAll(heading, "`", "")] = body
	}
	return parts
}

// firstCells returns the code in the first cells of the tables of a page.
func firstCells(text string) (cells []string) {
	for _, m := range regexp.MustCompile("(?m)^\\| \\[?`([^`]+)`").FindAllStringSubmatch(text, -1) {
		cells = append(cells, m[1])
	}
	return cells
}

// wantSame compares what a page documents with what exists.
func wantSame(t *testing.T, what string, there, documented []string) {
	t.Helper()
	if diff := cmp.Diff(slices.Sorted(slices.Values(there)), slices.Sorted(slices.Values(documented))); diff != "" {
		t.Errorf("%s (-there +documented):\n%s", what, diff)
	}
}

// reasonConstants are the constants of refusal.go.
func reasonConstants(t *testing.T) (names []string) {
	t.Helper()
	file, err := parser.ParseFile(gotoken.NewFileSet(), "internal/refusal/refusal.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(node ast.Node) bool {
		spec, ok := node.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := spec.Type.(*ast.Ident); ok && typ.Name == "Reason" {
			name, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, name)
		}
		return true
	})
	return names
}

// A reason that is missing in the list would be missing among the metrics before
// its first request.
func TestReasonsAreComplete(t *testing.T) {
	t.Parallel()
	var listed []string
	for _, r := range refusal.Reasons() {
		listed = append(listed, string(r))
	}
	wantSame(t, "reasons", reasonConstants(t), listed)
}

// retried reports whether players should try again, as the player page does.
func retried(r refusal.Reason) bool {
	switch r.Status() {
	case http.StatusTooEarly, http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return true
	}
	return r == refusal.TokenNotYetValid || r == refusal.NotAvailableYet
}

// Each reason has a section with its status and with whether to try again, and a
// row in the table.
func TestReasonsAreDocumented(t *testing.T) {
	t.Parallel()
	text := page(t, "docs/reasons.md")
	explained := sections(text, "##")
	wantSame(t, "rows of reasons", reasonConstants(t), firstCells(explained["All reasons"]))
	delete(explained, "All reasons")
	wantSame(t, "sections of reasons", reasonConstants(t), slices.Collect(maps.Keys(explained)))
	for name, section := range explained {
		status, retry := strconv.Itoa(refusal.Reason(name).Status()), "no"
		if retried(refusal.Reason(name)) {
			retry = "yes"
		}
		row := "| [`" + name + "`](#" + name + ") | " + status + " | " + retry + " |"
		if !strings.Contains(section, "Status "+status+". Retry: "+retry+".") || !strings.Contains(text, row) {
			t.Errorf("docs/reasons.md does not say of %s: status %s, retry %s", name, status, retry)
		}
	}
}

// optionBlock is a block of the Caddyfile and where it is documented.
type optionBlock struct {
	heading    string
	open, end  string   // a Caddyfile around an option
	borrowed   []string // options that another block's section describes
	documented string   // the section
	options    []string
}

// optionBlocks are in the order of optionPlaces.
func optionBlocks(t *testing.T) []optionBlock {
	t.Helper()
	blocks := []optionBlock{
		{
			heading: "The global option signed_playback",
			open:    "{\nsigned_playback {\n", end: "}\n}\n:80 {\nsigned_playback\n}\n",
		},
		{
			heading: "A video block",
			open:    "{\nsigned_playback {\nvideo demo {\n", end: "}\n}\n}\n:80 {\nsigned_playback\n}\n",
			borrowed: []string{"require_signed_urls", "allowed_origins", "missing_origin", "max_sessions", "access_rules", "enforce", "report_only"},
		},
		{
			heading: "The directive signed_playback",
			open:    ":80 {\nsigned_playback {\n", end: "}\n}\n",
			borrowed: []string{"enforce", "report_only"},
		},
		{
			heading: "The directive signed_playback_api",
			open:    ":80 {\nsigned_playback_api {\n", end: "}\n}\n",
		},
		{
			heading: "The directive signed_playback_cache",
			open:    ":80 {\nsigned_playback\nsigned_playback_cache {\n", end: "}\n}\n",
		},
		{
			heading: "The directive signed_playback_mint",
			open:    ":80 {\nsigned_playback_mint {\n", end: "}\n}\n",
		},
	}
	described := sections(page(t, "docs/caddyfile.md"), "##")
	for i, place := range caddyfileBlocks().Places {
		blocks[i].options = slices.Collect(maps.Keys(place.Options()))
		if blocks[i].documented = described[blocks[i].heading]; blocks[i].documented == "" {
			t.Fatalf("docs/caddyfile.md has no section %q", blocks[i].heading)
		}
	}
	return blocks
}

var (
	caddyfileBlock = regexp.MustCompile("(?ms)^```caddyfile\n(.*?)^```$")
	fieldRow       = regexp.MustCompile("(?m)^\\| `([a-z_.]+)` \\| ([a-z ]+) \\| (?:\\[`([a-z_]+)`\\])?")
)

// The section of each block documents its options and no others, each with an
// example that the parser accepts and the JSON fields that it becomes.
func TestOptionsAreDocumented(t *testing.T) {
	t.Parallel()
	for _, block := range optionBlocks(t) {
		t.Run(block.heading, func(t *testing.T) {
			described := sections(block.documented, "###")
			if len(block.borrowed) == len(block.options) {
				described = make(map[string]string) // a section without parts
			}
			wantSame(t, "options", block.options, append(slices.Collect(maps.Keys(described)), block.borrowed...))
			for _, name := range block.borrowed {
				if !strings.Contains(block.documented, "`"+name+"`") {
					t.Errorf("%s is not mentioned", name)
				}
			}
			for name, text := range described {
				block.checkOption(t, name, text)
			}
			if example := caddyfileBlock.FindStringSubmatch(block.documented); !strings.HasPrefix(block.adapt(t, example[1]), "{") {
				t.Errorf("the first example is refused: %s", block.adapt(t, example[1]))
			}
		})
	}
}

// The overview at the head of the page has the options of each block.
func TestOverviewHasAllOptions(t *testing.T) {
	t.Parallel()
	overview := caddyfileBlock.FindStringSubmatch(page(t, "docs/caddyfile.md"))[1]
	firstWord := regexp.MustCompile(`(?m)^(\t+)([a-z_]+)`)
	have := make(map[string][]string) // by indentation
	for _, m := range firstWord.FindAllStringSubmatch(overview, -1) {
		have[m[1]] = append(have[m[1]], m[2])
	}
	var inBlocks, inVideo []string
	for _, block := range optionBlocks(t) {
		if block.heading == "A video block" {
			inVideo = block.options
			continue
		}
		inBlocks = append(inBlocks, block.options...)
	}
	wantSame(t, "options in blocks", inBlocks, have["\t\t"])
	wantSame(t, "options in the block of a video", inVideo, have["\t\t\t"])
}

// adapt returns what options in the block adapt to.
func (b optionBlock) adapt(t *testing.T, options string) string {
	t.Helper()
	return adapt(t, string(caddyfile.Format([]byte(b.open+options+b.end))))
}

func (b optionBlock) checkOption(t *testing.T, name, text string) {
	t.Helper()
	for _, want := range []string{"\n- Syntax: `" + name, "\n- Default: "} {
		if !strings.Contains(text, want) {
			t.Errorf("%s: there is no line%s", name, want)
		}
	}
	example := caddyfileBlock.FindStringSubmatch(text)
	if example == nil || strings.Fields(example[1])[0] != name {
		t.Errorf("%s: there is no example of it", name)
		return
	}
	credential := ""
	if strings.HasSuffix(b.heading, "_api") && (name == "account" || name == "console") {
		credential = "bearer_token x\n"
	}
	if strings.HasSuffix(b.heading, "_mint") {
		for _, required := range []string{"video demo\n", "uid {http.auth.user.id}\n"} {
			if !strings.HasPrefix(required, name+" ") {
				credential += required
			}
		}
	}
	adapted := b.adapt(t, credential+example[1])
	for _, field := range fieldsOf(t, name) {
		if !strings.Contains(adapted, `"`+field+`":`) {
			t.Errorf("%s: the example does not become JSON with %q: %s", name, field, adapted)
		}
	}
}

// fieldsOf returns the JSON fields that an option becomes, by the page of JSON.
func fieldsOf(t *testing.T, option string) (names []string) {
	t.Helper()
	for _, row := range fieldRow.FindAllStringSubmatch(page(t, "docs/json.md"), -1) {
		if row[3] == option {
			names = append(names, row[1][strings.LastIndexByte(row[1], '.')+1:])
		}
	}
	if names == nil {
		t.Errorf("docs/json.md has no field for the option %s", option)
	}
	return names
}

// typeInJSON names the type of a field as docs/json.md does.
func typeInJSON(typ reflect.Type) string {
	switch {
	case typ == reflect.TypeFor[caddy.Duration]():
		return "duration"
	case typ == reflect.TypeFor[json.RawMessage](): // access rules
		return "array of objects"
	}
	switch typ.Kind() {
	case reflect.Pointer:
		return typeInJSON(typ.Elem())
	case reflect.Slice:
		return "array of " + typeInJSON(typ.Elem()) + "s"
	case reflect.Bool:
		return "boolean"
	case reflect.Int, reflect.Uint64:
		return "number"
	case reflect.Struct, reflect.Map:
		return "object"
	default:
		return typ.Kind().String()
	}
}

// fieldsWithTypes lists the JSON fields of a config, those of objects within it
// below their names. Settings of videos have a list of their own.
func fieldsWithTypes(config reflect.Type, prefix string) (fields []string) {
	for field := range config.Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if name == "" && field.Anonymous && field.Type != reflect.TypeFor[VideoSettings]() {
			fields = append(fields, fieldsWithTypes(field.Type, prefix)...)
		}
		if name == "" {
			continue
		}
		fields = append(fields, prefix+name+" "+typeInJSON(field.Type))
		object := field.Type
		for object.Kind() == reflect.Pointer || object.Kind() == reflect.Slice {
			object = object.Elem()
		}
		if object.Kind() == reflect.Struct {
			fields = append(fields, fieldsWithTypes(object, prefix+name+".")...)
		}
	}
	return fields
}

// Every field of the JSON config is documented with its type, and no other.
func TestFieldsAreDocumented(t *testing.T) {
	t.Parallel()
	described := sections(page(t, "docs/json.md"), "##")
	for heading, config := range map[string]reflect.Type{
		"The app":                           reflect.TypeFor[App](),
		"Settings of videos":                reflect.TypeFor[VideoSettings](),
		"The handler signed_playback":       reflect.TypeFor[Gate](),
		"The handler signed_playback_api":   reflect.TypeFor[API](),
		"The handler signed_playback_cache": reflect.TypeFor[Cache](),
		"The handler signed_playback_mint":  reflect.TypeFor[Mint](),
	} {
		var documented []string
		for _, row := range fieldRow.FindAllStringSubmatch(described[heading], -1) {
			documented = append(documented, row[1]+" "+row[2])
		}
		wantSame(t, heading, fieldsWithTypes(config, ""), documented)
	}
}

// The Caddyfile and the JSON of the page are the same config.
func TestJSONOfThePage(t *testing.T) {
	t.Parallel()
	twice := sections(page(t, "docs/json.md"), "##")["The same config twice"]
	blocks := regexp.MustCompile("(?ms)^```(caddyfile|json)\n(.*?)^```$").FindAllStringSubmatch(twice, -1)
	if len(blocks) != 2 {
		t.Fatalf("there are %d blocks: want a Caddyfile and its JSON", len(blocks))
	}
	if diff := cmp.Diff(blocks[1][2], adapt(t, blocks[0][2])); diff != "" {
		t.Errorf("what the Caddyfile adapts to (-documented +got):\n%s", diff)
	}
}

// The page of the Caddyfile names the defaults of the code.
func TestDefaultsAreDocumented(t *testing.T) {
	t.Parallel()
	described := page(t, "docs/caddyfile.md")
	for option, want := range map[string]string{
		"leeway":           "`" + defaultLeeway.String() + "`",
		"session_timeout":  "`" + strings.TrimSuffix(sessions.DefaultTimeout.String(), "0s") + "`",
		"jwks_url":         "`" + strings.TrimSuffix(defaultJWKSInterval.String(), "0s") + "`",
		"token_cache_size": "`" + strings.ReplaceAll(humanize.IBytes(defaultTokenCacheSize), " ", "") + "`",
		"origin_path":      "`/" + playbackpath.VideoPlaceholder + "`",
		"memory":           "`" + strings.ReplaceAll(humanize.IBytes(defaultCacheMemory), " ", "") + "`",
		"max_object":       "`" + strings.ReplaceAll(humanize.IBytes(defaultMaxObject), " ", "") + "`",
	} {
		_, text, _ := strings.Cut(described, "\n### `"+option+"`\n")
		_, line, _ := strings.Cut(text, "\n- Default: ")
		line, _, _ = strings.Cut(line, "\n")
		if !strings.Contains(line, want) {
			t.Errorf("the default of %s is %s, and documented as %q", option, want, line)
		}
	}
}

// frames complete the parts of configs that pages show: of a site, or of the
// global options.
var frames = []optionBlock{
	{open: ":80 {\n", end: "}\n"},
	{open: "{\n", end: "}\n:80 {\nrespond ok\n}\n"},
}

// wholeConfig matches a config that needs no frame: one with global options, a
// snippet or the address of a site.
var wholeConfig = regexp.MustCompile(`(?m)^(?:\{|\(\w+\) \{|https?://\S+ \{)$`)

// Caddy accepts the configs of all pages. caddyfile.md shows parts of blocks, which
// TestOptionsAreDocumented checks.
func TestConfigsOfPagesAreValid(t *testing.T) {
	dir := t.TempDir()
	key := publicJWK(testKey())
	for name, content := range map[string]string{
		"public.json": key, "stream.jwk": key, "2030-01.public.json": key, "2030-02.public.json": key, "K2JCJMDQS1EIOO.pem": key, "hls.min.js": "self.Hls = {}",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	names := strings.NewReplacer(
		"/srv/hls.js/dist/", dir+"/", "/usr/share/caddy-signed-playback/", dir+"/", "key_file public.json", "key_file "+dir+"/public.json", "player hls.min.js", "player "+dir+"/hls.min.js", "/etc/caddy/", dir+"/", "/var/lib/GeoIP/GeoLite2-Country.mmdb", "testdata/country.mmdb",
	)
	t.Setenv("SIGNED_PLAYBACK_API_TOKEN", "a-secret-of-some-length")
	t.Setenv("CLOUDFLARE_API_TOKEN", "a-secret-of-some-length")
	t.Setenv("SIGNED_PLAYBACK_REDIS", "redis://127.0.0.1:1")
	t.Setenv("SESSION_SECRET", "a-secret-of-some-length")
	blocks := regexp.MustCompile("(?ms)^```caddyfile[^\n]*\n(.*?)^```$")
	validated := 0
	walk(t, func(path string) {
		if filepath.Ext(path) != ".md" || path == filepath.Join("docs", "caddyfile.md") {
			return
		}
		for _, block := range blocks.FindAllStringSubmatch(page(t, path), -1) {
			validated++
			if err := validateInAFrame(t, names.Replace(block[1]), dir); err != nil {
				t.Errorf("%s: %v:\n%s", path, err, block[1])
			}
		}
	})
	if validated < 20 {
		t.Errorf("the pages have %d configs: the pattern does not find them", validated)
	}
}

// validateInAFrame provisions a config and does not start it.
func validateInAFrame(t *testing.T, text, dir string) error {
	t.Helper()
	var adapted, refusals string
	around := frames
	if wholeConfig.MatchString(text) {
		around = []optionBlock{{}}
	}
	for _, frame := range around {
		if adapted = frame.adapt(t, text); strings.HasPrefix(adapted, "{") {
			break
		}
		refusals += adapted
	}
	var cfg caddy.Config
	if err := caddy.StrictUnmarshalJSON([]byte(adapted), &cfg); err != nil {
		return errors.New(refusals)
	}
	cfg.StorageRaw = caddyconfig.JSONModuleObject(map[string]string{"root": dir}, "module", "file_system", nil)
	return validateConfig(&cfg)
}

// invocation matches a command of pages, on a line of its own, in $(…) and within
// text.
var invocation = regexp.MustCompile(`caddy signed-playback ([a-z]+)((?: +(?:"[^"\n]*"|'[^'\n]*'|[^\s"'|>)#` + "`" + `&;]+))*)`)

// The commands of all pages exist and have the flags that the pages give them.
func TestCommandsOfPagesParse(t *testing.T) {
	t.Parallel()
	parsed := 0
	walk(t, func(path string) {
		if filepath.Ext(path) != ".md" {
			return
		}
		for _, m := range invocation.FindAllStringSubmatch(page(t, path), -1) {
			root := new(cobra.Command)
			caddycmd.Commands()["signed-playback"].CobraFunc(root)
			cmd, _, err := root.Find([]string{m[1]})
			if err != nil || cmd == root {
				t.Errorf("%s: %s: there is no such command", path, m[0])
				continue
			}
			var words []string
			for _, word := range regexp.MustCompile(`"[^"]*"|'[^']*'|\S+`).FindAllString(m[2], -1) {
				words = append(words, strings.Trim(word, `"'`))
			}
			parsed++
			if err := cmd.ParseFlags(words); err != nil {
				t.Errorf("%s: %s: %v", path, m[0], err)
			}
		}
	})
	if parsed < 20 {
		t.Errorf("the pages have %d commands: the pattern does not find them", parsed)
	}
}

// Placeholders and log fields are all on their page, and no others.
func TestPlaceholdersAreDocumented(t *testing.T) {
	t.Parallel()
	described := sections(page(t, "docs/metrics.md"), "##")["Placeholders and log fields"]
	var placeholders []string
	for _, name := range recordedNames {
		placeholders = append(placeholders, "{http.signed_playback."+name+"}")
		if field := "| `signed_playback_" + name + "` |"; !strings.Contains(described, field) {
			t.Errorf("there is no log field %s", field)
		}
	}
	wantSame(t, "placeholders", placeholders, firstCells(described))
}

// commandFlag matches the start of a flag's description in the usage of a command.
var commandFlag = regexp.MustCompile(`(?m)^ +(?:-\w, )?--[a-z-]+`)

// Every command and each of its flags is on the page of commands, and no other.
func TestCommandsAreDocumented(t *testing.T) {
	t.Parallel()
	described := sections(page(t, "docs/commands.md"), "##")
	cmd := new(cobra.Command)
	caddycmd.Commands()["signed-playback"].CobraFunc(cmd)
	var commands []string
	for _, sub := range cmd.Commands() {
		name := "caddy signed-playback " + sub.Name()
		commands = append(commands, name)
		flags := commandFlag.FindAllString(sub.Flags().FlagUsages(), -1)
		for i := range flags {
			flags[i] = flags[i][strings.LastIndexByte(flags[i], ' ')+1:]
		}
		wantSame(t, "flags of "+name, flags, firstCells(described[name]))
	}
	wantSame(t, "commands", commands, slices.Collect(maps.Keys(described)))
}

var testFunction = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)

// Each promise names tests, and they are where the heading of their column runs them.
func TestPromisesHaveTests(t *testing.T) {
	t.Parallel()
	unit, integration := make(map[string]bool), make(map[string]bool)
	walk(t, func(path string) {
		tests := unit
		switch folder, _, _ := strings.Cut(filepath.ToSlash(path), "/"); {
		case !strings.HasSuffix(path, "_test.go"), folder == "bench":
			return
		case folder == "integration":
			tests = integration
		}
		for _, m := range testFunction.FindAllStringSubmatch(page(t, path), -1) {
			tests[m[1]] = true
		}
	})
	promises := 0
	text, _, _ := strings.Cut(page(t, "docs/promises.md"), "\n## Figures\n")
	for line := range strings.Lines(text) {
		cells := strings.Split(strings.Trim(line, "|\n"), "|")
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| promise |") || strings.HasPrefix(line, "| --- |") {
			continue
		}
		promises++
		if len(cells) != 3 || !strings.Contains(cells[1]+cells[2], "`") {
			t.Errorf("no test holds the promise: %s", line)
			continue
		}
		for i, tests := range []map[string]bool{unit, integration} {
			for _, m := range regexp.MustCompile("`(\\w+)`").FindAllStringSubmatch(cells[i+1], -1) {
				if !tests[m[1]] {
					t.Errorf("%s: there is no test %s there", cells[0], m[1])
				}
			}
		}
	}
	if promises < 80 {
		t.Errorf("the page has %d promises: the pattern does not find them", promises)
	}
}

// Each log comes from a complete run of a command on the page, which has passed. The page links to it.
// Threat: logs are public, and a token in one plays.
func TestFiguresHaveLogs(t *testing.T) {
	t.Parallel()
	figures := sections(page(t, "docs/promises.md"), "##")["Figures"]
	begin := regexp.MustCompile("^Made by `(make [^`]+)` on \\d{4}-\\d\\d-\\d\\d \\d\\d:\\d\\d UTC from commit [0-9a-f]{12}\\.\n.+ cores.*; load average at the start: [0-9.]+\n\n")
	private := regexp.MustCompile(`[\w-]{36,}|eyJ|(?:^|[\s"=:])/(?:home|root|tmp|usr|var|work)/`)
	logs, err := filepath.Glob("bench/logs/*.log")
	if err != nil {
		t.Fatal(err)
	}
	commands := make(map[string]bool)
	for _, name := range logs {
		text := page(t, name)
		made := begin.FindStringSubmatch(text)
		if made == nil {
			t.Errorf("%s does not say what has made it, when, from which commit and on which machine: %.300s", name, text)
			continue
		}
		commands[made[1]] = true
		if test, ok := strings.CutPrefix(made[1], "make test-long RUN="); ok && (name != "bench/logs/"+test+".log" || !strings.HasSuffix(text, "\nPASS\n")) {
			t.Errorf("%s is not the log of a run of %s that has passed", name, test)
		}
		for line := range strings.Lines(text) {
			if secret := private.FindString(line); secret != "" {
				t.Errorf("%s contains %q, which may be a token, a key or a path of one machine", name, secret)
			}
		}
	}
	for _, m := range regexp.MustCompile("(?m)^\\| .+ \\| `(make test-long RUN=(\\w+))` \\|(.*)\\|$").FindAllStringSubmatch(figures, -1) {
		if linked := strings.Contains(m[3], "(../bench/logs/"+m[2]+".log)"); linked != commands[m[1]] {
			t.Errorf("the figure of `%s` has a link to its log: %t, and there is a log: %t", m[1], linked, commands[m[1]])
		}
	}
}

// walk calls a function for each file of the project, in whatever module.
func walk(t *testing.T, visit func(path string)) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && slices.Contains([]string{"node_modules", "bin", ".git"}, entry.Name()) {
			return fs.SkipDir
		}
		if err == nil && entry.Type().IsRegular() {
			visit(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

var (
	markdownLink    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	markdownHeading = regexp.MustCompile(`(?m)^#+ (.+)$`)
	noAnchor        = regexp.MustCompile(`[^a-z0-9 _-]`)
	anyFence        = regexp.MustCompile("(?ms)^```.*?^```$")
)

// anchors returns the fragments that lead to the headings of a page.
func anchors(text string) (names []string) {
	repeated := make(map[string]int)
	for _, m := range markdownHeading.FindAllStringSubmatch(anyFence.ReplaceAllString(text, ""), -1) {
		name := strings.ReplaceAll(noAnchor.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")
		if repeated[name]++; repeated[name] > 1 {
			name += "-" + strconv.Itoa(repeated[name]-1)
		}
		names = append(names, name)
	}
	return names
}

// The links of all pages lead to files and headings that exist.
func TestLinksLeadSomewhere(t *testing.T) {
	t.Parallel()
	anchorsOf := make(map[string][]string)
	walk(t, func(path string) {
		if filepath.Ext(path) != ".md" {
			return
		}
		text := anyFence.ReplaceAllString(page(t, path), "")
		for _, m := range markdownLink.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			target, anchor, hasAnchor := strings.Cut(m[1], "#")
			file := path
			if target != "" {
				file = filepath.Join(filepath.Dir(path), target)
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s links to %s: %v", path, m[1], err)
				continue
			}
			if hasAnchor && anchorsOf[file] == nil {
				anchorsOf[file] = anchors(page(t, file))
			}
			if hasAnchor && !slices.Contains(anchorsOf[file], anchor) {
				t.Errorf("%s links to %s: there is no such heading", path, m[1])
			}
		}
	})
}

// The index of the documentation has all of its pages. The site's navigation is made from it.
func TestIndexHasAllPages(t *testing.T) {
	t.Parallel()
	index := page(t, "docs/README.md")
	walk(t, func(path string) {
		name, isPage := strings.CutPrefix(path, "docs/")
		if isPage && filepath.Ext(name) == ".md" && name != "README.md" && !strings.Contains(index, "]("+name+")") {
			t.Errorf("docs/README.md does not name %s", name)
		}
	})
}

// The pages build the version of Caddy that is tested, with the Go that has the
// fixes on which the threat model relies. The other modules are built with it too.
func TestPagesNameTheVersionsOfCaddyAndGo(t *testing.T) {
	t.Parallel()
	const caddy, release = `(?m)^\tgithub\.com/caddyserver/caddy/v2 (\S+)$`, `(?m)^go (\S+)$`
	for _, tc := range []struct {
		required, named string
		files           []string
	}{
		{caddy, `xcaddy build (\S+)`, []string{"README.md", "docs/guide.md"}},
		{release, `Go \(?(\S+) or later`, []string{"README.md", "docs/guide.md"}},
		{release, `a Go before (\S+),`, []string{"docs/threat-model.md"}},
		{release, release, []string{"integration/go.mod", "bench/go.mod"}},
	} {
		want := regexp.MustCompile(tc.required).FindStringSubmatch(page(t, "go.mod"))[1]
		for _, name := range tc.files {
			if m := regexp.MustCompile(tc.named).FindStringSubmatch(page(t, name)); m == nil || m[1] != want {
				t.Errorf("%s says %q, want %s", name, m, want)
			}
		}
	}
}

var (
	architectureName = regexp.MustCompile("`([a-z_/]+\\.go)(?::([\\w.]+))?`")
	architectureRoom = regexp.MustCompile("(?m)^\\| `([a-z/]+)` \\| [^|]+ \\|(.*)\\|$")
)

// Each file that ARCHITECTURE.md names exists and declares what the page says is in it, each
// product file of the root package is named, and the table of rooms has their imports.
func TestArchitectureIsTrue(t *testing.T) {
	t.Parallel()
	text := page(t, "ARCHITECTURE.md")
	named := make(map[string]bool)
	for _, m := range architectureName.FindAllStringSubmatch(text, -1) {
		named[m[1]] = true
		if names := declaredIn(t, m[1]); m[2] != "" && !names[m[2]] {
			t.Errorf("%s does not declare %s", m[1], m[2])
		}
	}
	files, _ := filepath.Glob("*.go")
	for _, name := range files {
		if !named[name] && !strings.HasSuffix(name, "_test.go") {
			t.Errorf("ARCHITECTURE.md does not name %s", name)
		}
	}
	imports, documented := make(map[string][]string), make(map[string][]string)
	for _, room := range rooms() {
		imports[room.path] = nil
		for _, path := range room.imports {
			if other, own := strings.CutPrefix(path, modulePath+"/"); own {
				imports[room.path] = append(imports[room.path], strings.TrimPrefix(other, "internal/"))
			}
		}
		slices.Sort(imports[room.path])
	}
	for _, m := range architectureRoom.FindAllStringSubmatch(text, -1) {
		documented[m[1]] = nil
		for _, other := range regexp.MustCompile("`(\\w+)`").FindAllStringSubmatch(m[2], -1) {
			documented[m[1]] = append(documented[m[1]], other[1])
		}
	}
	if diff := cmp.Diff(imports, documented); diff != "" {
		t.Errorf("imports of rooms (-there +documented):\n%s", diff)
	}
}

// declaredIn returns the functions, types, variables and constants of a file, with methods as
// `Type.method`.
func declaredIn(t *testing.T, name string) map[string]bool {
	t.Helper()
	file, err := parser.ParseFile(gotoken.NewFileSet(), name, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[string]bool)
	ast.Inspect(file, func(node ast.Node) bool {
		switch d := node.(type) {
		case *ast.FuncDecl:
			receiver := ""
			if d.Recv != nil {
				receiver = strings.TrimPrefix(types.ExprString(d.Recv.List[0].Type), "*") + "."
			}
			names[receiver+d.Name.Name] = true
			return false
		case *ast.TypeSpec:
			names[d.Name.Name] = true
		case *ast.ValueSpec:
			names[d.Names[0].Name] = true
		}
		return true
	})
	return names
}
