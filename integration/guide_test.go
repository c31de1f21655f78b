package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// snippet is a fenced block of a page.
type snippet struct {
	task    string // the heading of the second level above it, or the name of a page that is one task
	heading string // the nearest heading
	lang    string
	file    string // what the text says to save it as, "" for nothing
	text    string
}

var headingOrBlock = regexp.MustCompile("(?ms)^(##|###) ([^\n]*)$|^```([a-z]+)(?: ([^\n]+))?\n(.*?)^```$")

// guide returns the blocks of the guide in their order.
func guide(t testing.TB) (snippets []snippet) {
	t.Helper()
	var task, heading string
	for _, m := range headingOrBlock.FindAllStringSubmatch(readText(t, "../docs/guide.md"), -1) {
		switch m[1] {
		case "##":
			task, heading = m[2], m[2]
		case "###":
			heading = m[2]
		default:
			snippets = append(snippets, snippet{task, heading, m[3], m[4], m[5]})
		}
	}
	return snippets
}

// pageAsTask returns the blocks of a page of docs that is one task from its first line to
// its last.
func pageAsTask(t testing.TB, name string) (snippets []snippet) {
	t.Helper()
	for _, m := range headingOrBlock.FindAllStringSubmatch(readText(t, "../docs/"+name), -1) {
		if m[1] == "" {
			snippets = append(snippets, snippet{task: name, lang: m[3], file: m[4], text: m[5]})
		}
	}
	return snippets
}

// guideTasks are the tasks of the guide that use a shell, and pages that are tasks, with a
// check of the end where the lines do not say all.
var guideTasks = map[string]func(*terminal){
	"Protect an origin":                      nil,
	"Embed on your site":                     nil,
	"Restrict by country and address":        nil,
	"Downloads":                              nil,
	"Rotate and revoke keys":                 nil,
	"Cut off a viewer":                       nil,
	"Behind a CDN or a load balancer":        nil,
	"Introduce it where viewers already are": (*terminal).wantReported,
	"Before it goes live":                    (*terminal).wantNoTokenLogged,
	"When a viewer cannot play":              nil,
	"console.md":                             nil,
	"from-cloudflare-stream.md":              (*terminal).wantMoved,
	"from-cloudfront-or-bunny.md":            nil,
	"from-nginx-secure-link.md":              nil,
	"login.md":                               nil,
	"sessions.md":                            nil,
	"upgrade.md":                             nil,
}

// You get what the pages say when you type what they say: each line of each task is
// run in order, with the task's configs, and does what its comment says.
func TestGuideTasks(t *testing.T) {
	t.Parallel()
	var order []string
	tasks := make(map[string][]snippet)
	snippets := guide(t)
	for name := range guideTasks {
		if strings.HasSuffix(name, ".md") {
			snippets = append(snippets, pageAsTask(t, name)...)
		}
	}
	for _, s := range snippets {
		if isShell(s) && !slices.Contains(order, s.task) {
			order = append(order, s.task)
		}
		tasks[s.task] = append(tasks[s.task], s)
	}
	wantEqual(t, slices.Sorted(maps.Keys(guideTasks)), slices.Sorted(slices.Values(order)), "the tasks of the guide that are done at a shell")
	files := takenOver(t)
	for _, task := range order {
		t.Run(task, func(t *testing.T) {
			t.Parallel()
			term := openTerminal(t, tasks[task], files)
			for _, s := range tasks[task] {
				switch {
				case isShell(s):
					term.follow(s.text)
				case s.file != "":
					term.save(s.file, s.text)
				}
			}
			if check := guideTasks[task]; check != nil {
				check(term)
			}
			if term.promises == 0 {
				t.Error("no line says what comes of it")
			}
		})
	}
}

func isShell(s snippet) bool { return s.lang == "sh" }

// terminal is a shell in which somebody follows the guide. Names and ports of the
// guide are replaced by the test's own.
type terminal struct {
	t        *testing.T
	dir      string // the working folder, and /etc/caddy too
	names    *strings.Replacer
	env      []string
	shell    io.Writer
	output   *logBuffer
	read     int // how much of output has been looked at
	lines    int
	promises int // lines of which the guide says what comes of them
	gate     *gateway
}

// takenOver makes the files that later tasks use from earlier ones.
func takenOver(t *testing.T) map[string]string {
	t.Helper()
	key, output := keygen(t)
	old, oldOutput := keygen(t, "--kid", "2030-01")
	return map[string]string{
		"key.json": output, "public.json": string(key.JWKS),
		"2030-01.json": oldOutput, "2030-01.public.json": string(old.JWKS),
	}
}

// openTerminal starts a shell where the task can begin, with an origin unless the
// task starts it.
func openTerminal(t *testing.T, task []snippet, files map[string]string) *terminal {
	t.Helper()
	term := &terminal{t: t, dir: t.TempDir(), output: new(logBuffer)}
	var key generatedKey
	noError(t, json.Unmarshal([]byte(files["key.json"]), &key))
	term.provide(files, task)
	origin := freeAddr(t)
	if !slices.ContainsFunc(task, func(s snippet) bool { return strings.HasPrefix(s.text, "caddy file-server") || s.file == "nginx.conf" }) {
		origin = startOrigin(t, exampleMedia()).addr()
	}
	admin := freeAddr(t)
	term.rename(origin, admin)
	term.env = append(os.Environ(), raceOptions, "CADDY_ADMIN="+admin,
		"PATH="+term.path("bin")+":"+os.Getenv("PATH"), "HOME="+term.dir, "XDG_DATA_HOME="+term.dir, "XDG_CONFIG_HOME="+term.dir,
		"SIGNED_PLAYBACK_API_TOKEN="+apiSecret, "CLOUDFLARE_API_TOKEN="+apiSecret, "ACCOUNT="+account, "STREAM_JWK="+key.JWK)

	cmd := exec.Command(tool(t, "bash"), "--noprofile", "--norc", "-u", "-o", "pipefail")
	cmd.Dir, cmd.Env = term.dir, term.env
	cmd.Stdout, cmd.Stderr = term.output, term.output
	stdin := must(cmd.StdinPipe())(t)
	term.shell = stdin
	noError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return term
}

func (term *terminal) path(name string) string { return filepath.Join(term.dir, name) }

// provide puts programs and files where the guide has them, but for files that the task
// makes.
func (term *terminal) provide(files map[string]string, task []snippet) {
	term.t.Helper()
	for _, program := range []string{"curl", "jq"} {
		tool(term.t, program)
	}
	noError(term.t, os.Mkdir(term.path("bin"), 0o700))
	for name, target := range map[string]string{"bin/caddy": binary(term.t), "examples": "../examples", "hls.min.js": hlsJS(term.t)} {
		absolute, err := filepath.Abs(target)
		if err == nil {
			err = os.Symlink(absolute, term.path(name))
		}
		if err != nil {
			term.t.Fatal(err)
		}
	}
	makesKeys := slices.ContainsFunc(task, func(s snippet) bool { return strings.Contains(s.text, "keygen -o key.json ") })
	for name, content := range files {
		if !makesKeys || name != "key.json" && name != "public.json" {
			writeFile(term.t, term.path(name), []byte(content))
		}
	}
}

// rename has the names of the guide lead to this machine.
func (term *terminal) rename(origin, admin string) {
	term.t.Helper()
	gate := freeAddr(term.t)
	_, port, _ := strings.Cut(gate, ":")
	term.names = strings.NewReplacer(
		"https://media.example.com", "http://"+gate,
		"localhost:8080", "localhost:"+port,
		"127.0.0.1:8081", origin,
		"127.0.0.1:8082", freeAddr(term.t),
		"/srv/videos", must(filepath.Abs("../examples/media"))(term.t),
		"https://api.example.com", "http://"+freeAddr(term.t),
		"https://api.cloudflare.com", startCloudflare(term.t),
		"localhost:2019", admin,
		"/etc/caddy/", term.dir+"/",
		"/var/lib/GeoIP/GeoLite2-Country.mmdb", testdata(term.t, "country.mmdb"),
	)
}

// save puts a block into a file. With the first config of a task, the gate
// starts.
func (term *terminal) save(name, text string) {
	term.t.Helper()
	text = term.names.Replace(text)
	if name == "nginx.conf" {
		startNginx(term.t, term.dir, text)
		return
	}
	if name == "Caddyfile" {
		text = strings.Replace(text, "{\n", "{\n\tdefault_bind 127.0.0.1\n", 1)
	}
	writeFile(term.t, term.path(name), []byte(text))
	if name != "Caddyfile" || term.gate != nil {
		return
	}
	term.gate = term.serve("serving initial configuration", "run")
	if strings.Contains(term.gate.log.String(), "not formatted") {
		term.t.Error("the Caddyfile is not formatted as caddy fmt would")
	}
}

// serve starts a server that runs to the end of the task.
func (term *terminal) serve(started string, args ...string) *gateway {
	term.t.Helper()
	g := &gateway{dir: term.dir, log: new(logBuffer)}
	g.launch(term.t, binary(term.t), term.env, g.log, started, args...)
	return g
}

// follow types the lines of a block, one after the other.
func (term *terminal) follow(block string) {
	term.t.Helper()
	// .ci/xcaddy builds as users do.
	if strings.HasPrefix(block, "git clone ") || strings.HasPrefix(block, "xcaddy build ") {
		return
	}
	for _, line := range commandLines(term.names.Replace(block)) {
		switch words := strings.Fields(line); {
		case line == "caddy run": // save has done it
		case strings.HasPrefix(line, "caddy run --config "): // TestExamples runs the file
			term.check("caddy adapt --config " + words[3])
		case strings.HasPrefix(line, "caddy file-server "):
			term.serve("serving static files", words[1:]...)
		default:
			term.check(line)
		}
	}
}

// commandLines splits a block into what is typed before the shell does anything.
func commandLines(block string) (lines []string) {
	for line := range strings.Lines(block) {
		line = strings.TrimSuffix(line, "\n")
		if last := len(lines) - 1; last >= 0 && (strings.HasPrefix(line, "\t") || strings.HasPrefix(line, "done")) {
			lines[last] += "\n" + line
			continue
		}
		lines = append(lines, line)
	}
	return lines
}

var (
	promise     = regexp.MustCompile(`\s+# (.+)$`)
	answerSaid  = regexp.MustCompile(`^(\d{3})(?: (\w+))?$`)
	answerGiven = regexp.MustCompile(`(?m)^HTTP/1\.1 (\d{3}) `)
	reasonGiven = regexp.MustCompile(`(?m)^Signed-Playback-Reason: (\w+)\r?$`)
)

// check types a line and compares the outcome with the comment at its end. A line
// without a comment succeeds.
func (term *terminal) check(line string) {
	term.t.Helper()
	output, code := term.run(line)
	m := promise.FindStringSubmatch(line)
	if m == nil {
		if code != 0 {
			term.t.Errorf("%s\nends with the status %d:\n%s", line, code, output)
		}
		return
	}
	term.promises++
	if status := answerSaid.FindStringSubmatch(m[1]); status != nil {
		term.checkAnswer(line, output, status[1], status[2])
		return
	}
	wantCode := 0
	if strings.HasPrefix(m[1], "refused") {
		wantCode = 1
	} else if m[1] != "allowed" {
		term.t.Errorf("%s\nmakes no promise that can be kept", line)
	}
	if !strings.Contains(output, "\n"+m[1]+", for ") || code != wantCode {
		term.t.Errorf("%s\nends with the status %d:\n%s", line, code, output)
	}
}

// checkAnswer compares what curl prints with a status and a reason.
func (term *terminal) checkAnswer(line, output, status, reason string) {
	term.t.Helper()
	var gotStatus, gotReason string
	if m := answerGiven.FindStringSubmatch(output); m != nil {
		gotStatus = m[1]
	}
	if m := reasonGiven.FindStringSubmatch(output); m != nil {
		gotReason = m[1]
	}
	if gotStatus != status || gotReason != reason {
		term.t.Errorf("%s\nis answered with %q %q:\n%s", line, gotStatus, gotReason, output)
	}
}

// run types a line and returns what is printed, and the status.
func (term *terminal) run(line string) (output string, code int) {
	term.t.Helper()
	term.lines++
	end := fmt.Sprintf("the end of line %d\n", term.lines)
	must(fmt.Fprintf(term.shell, "%s\nprintf '\\n%%d %%s' $? '%s'\n", line, end))(term.t)
	term.output.await(term.t, end)
	all := term.output.String()
	output, term.read = all[term.read:], len(all)
	output = strings.TrimSuffix(output, " "+end)
	last := strings.LastIndexByte(output, '\n')
	code, err := strconv.Atoi(output[last+1:])
	if err != nil {
		term.t.Fatalf("%s\nhas no status: %q", line, output)
	}
	return output[:last], code
}

// The task ends with a server that tells what it would refuse.
func (term *terminal) wantReported() {
	term.t.Helper()
	for _, want := range []string{"NOTHING IS REFUSED", `"would refuse: token_required"`, `"signed_playback_result":"would_refuse"`} {
		term.gate.log.await(term.t, want)
	}
}

// The task ends with a log that tells tokens apart and has none.
func (term *terminal) wantNoTokenLogged() {
	term.t.Helper()
	playback, _ := term.run(`echo "$url"`)
	_, path, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(playback), "http://"), "/")
	compact, _, _ := strings.Cut(path, "/")
	if _, err := token.Parse(compact); err != nil {
		term.t.Fatalf("$url is %q: %v", playback, err)
	}
	term.gate.log.await(term.t, `"signed_playback_token_id"`)
	for part := range strings.SplitSeq(compact, ".") {
		if strings.Contains(term.gate.log.String(), part) {
			term.t.Errorf("a part of the token is in the log:\n%s", term.gate.log)
		}
	}
}

// cloudflareVideos are what Cloudflare would list.
const cloudflareVideos = `{
	"result": [
		{"uid": "demo", "requireSignedURLs": true, "allowedOrigins": ["www.example.com"], "meta": {"name": "it's a demo"}, "size": 4190963,
			"duration": 12, "created": "2030-01-02T03:04:05Z", "status": {"state": "ready"}, "readyToStream": true},
		{"uid": "open", "requireSignedURLs": false, "allowedOrigins": [], "meta": {}, "size": 1, "duration": 1,
			"created": "2030-01-01T03:04:05Z", "status": {"state": "ready"}, "readyToStream": true}
	],
	"success": true, "errors": [], "messages": []
}`

// startCloudflare starts what the guide reads settings from.
func startCloudflare(t *testing.T) (address string) {
	t.Helper()
	server := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/client/v4/accounts/"+account+"/stream" || r.Header.Get("Authorization") != "Bearer "+apiSecret {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, cloudflareVideos)
	}))
	return server.URL
}

// The task ends with the key and the settings that were in force before.
func (term *terminal) wantMoved() {
	term.t.Helper()
	gate := term.names.Replace("https://media.example.com")
	term.check(`signed=$(caddy signed-playback sign --key key.json --sub demo --url ` + gate + `)`)
	term.check(`curl -i "$signed"  # 403 origin_required`)
	term.check(`curl -i -H "Origin: https://www.example.com" "$signed"  # 200`)
	term.check(`curl -i ` + gate + `/demo/manifest/video.m3u8  # 401 token_required`)
	term.check(`curl -i ` + gate + `/open/manifest/video.m3u8  # 404`)
	term.check(`curl -i ` + gate + `/other/manifest/video.m3u8  # 401 token_required`)
}

// What the guide puts on a page plays there, and says why if it does not.
func TestGuideEmbedding(t *testing.T) {
	t.Parallel()
	var iframe, player string
	for _, s := range guide(t) {
		switch {
		case s.lang == "html" && strings.Contains(s.text, "<iframe"):
			iframe = s.text
		case s.lang == "html" && strings.Contains(s.text, "<video"):
			player = s.text
		}
	}
	pages := make(map[string]string)
	site := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hls.min.js" {
			http.ServeFile(w, r, hlsJS(t))
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, "<!doctype html><title>A site</title><link rel=icon href=data:,>"+pages[r.URL.Path])
	}))
	o := startOrigin(t, exampleMedia())
	g := start(t, o, config{app: "allowed_origins www.example.test:" + portOf(site), gate: "player " + hlsJS(t)})
	expired := mint(t, "demo", func(c *token.Claims) { c.ExpiresAt = time.Now().Add(-time.Hour) })
	withToken := func(page, compact string) string {
		const example = "https://media.example.com/eyJhbGciOiJSUzI1NiIsImtpZCI6…/"
		if strings.Count(page, example) != 1 {
			t.Fatalf("there is not one URL like %s in\n%s", example, page)
		}
		return strings.Replace(page, example, g.url("/"+compact+"/"), 1)
	}
	pages["/iframe"] = withToken(iframe, mint(t, "demo", nil))
	pages["/player"] = withToken(player, mint(t, "demo", nil))
	pages["/expired"] = withToken(player, expired)
	open := func(t *testing.T, page string) *tab {
		p := openTab(t)
		o.take()
		p.open(t, "http://www.example.test:"+portOf(site)+page)
		return p
	}

	t.Run("the player page", func(t *testing.T) {
		open(t, "/iframe")
		eventually(t, "the frame asks for the manifest", func() bool {
			return slices.Contains(o.uris(), "/demo/manifest/video.m3u8")
		})
	})
	t.Run("a player", func(t *testing.T) {
		p := open(t, "/player")
		p.until(t, "the video plays", "video.play().catch(() => {}), video.currentTime > 0.5")
	})
	t.Run("a player with an expired token", func(t *testing.T) {
		p := open(t, "/expired")
		const want = "This video cannot be played: token_expired"
		eventually(t, "the page says: "+want, func() bool {
			return evaluate[string](t, p, "document.getElementById('message').textContent") == want
		})
	})
}
