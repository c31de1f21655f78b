package signedplayback

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/signed-playback/caddy-signed-playback/internal/verification"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// Each file of testdata/script is a shell session with the command caddy. It can use the
// commands of testscript and of scriptCommands, and has key.json, its public.json, and other.json.
func TestCommands(t *testing.T) {
	keyFile := func(key *token.SigningKey) string {
		public := json.RawMessage(keySetOf(key))
		return string(must(json.Marshal(map[string]any{"id": key.ID(), "pem": key.PEM(), "jwk": must(key.JWK()), "jwks": public})))
	}
	other := must(token.ParseSigningKey([]byte(otherKey().PEM()), "other"))
	keys := map[string]string{"key.json": keyFile(keyOf("main")), "public.json": keySetOf(keyOf("main")), "other.json": keyFile(other)}
	testscript.Run(t, testscript.Params{
		Dir: must(filepath.Abs("testdata/script")),
		Setup: func(env *testscript.Env) error {
			for file, key := range keys {
				must(struct{}{}, os.WriteFile(filepath.Join(env.WorkDir, file), []byte(key), 0o600))
			}
			env.Setenv("HOME", env.WorkDir) // and with it Caddy's storage
			env.Setenv("TESTDATA", must(filepath.Abs("testdata")))
			taken := must(net.Listen("tcp", "127.0.0.1:0"))
			env.Defer(func() { _ = taken.Close() })
			env.Setenv("TAKEN", taken.Addr().String())
			env.Setenv("FREE", reservedAddr(env.Defer))
			return nil
		},
		Cmds:                scriptCommands,
		RequireExplicitExec: false,
		RequireUniqueNames:  true,
	})
}

var scriptCommands = map[string]func(*testscript.TestScript, bool, []string){
	// signed-playback <arguments> [<file]: run a command in this process, because to start one
	// takes the race detector long. It reads the file as standard input.
	"signed-playback": func(ts *testscript.TestScript, neg bool, args []string) {
		if err := runScripted(ts, args); (err != nil) != neg {
			ts.Fatalf("the command ends with %v", err)
		}
	},
	// fails 'text' <arguments>: `signed-playback <arguments>` ends with status 2. Its standard
	// output is empty, so a pipe gets no result. Its error contains the text and no private key.
	"fails": func(ts *testscript.TestScript, _ bool, args []string) {
		if err := runScripted(ts, args[1:]); err == nil || err.Error() != "exiting with status 2" {
			ts.Fatalf("the command ends with %v, want exit status 2", err)
		}
		stdout, stderr := fmt.Sprint(ts.Stdout()), fmt.Sprint(ts.Stderr())
		if stdout != "" || !strings.Contains(stderr, args[0]) || strings.Contains(stderr, "PRIVATE KEY-----") || strings.Contains(stderr, `"d"`) {
			ts.Fatalf("standard output %q, standard error %q; want no output, and an error with %q and without a private key", stdout, stderr, args[0])
		}
	},
	// capture <name> [<label>]: set an environment variable to the only line of standard
	// output, or to the rest of the line that begins with the label.
	"capture": func(ts *testscript.TestScript, _ bool, args []string) {
		line := ts.ReadFile("stdout")
		if len(args) == 2 {
			_, after, _ := strings.Cut("\n"+line, "\n"+args[1])
			line, _, _ = strings.Cut(after, "\n")
			line += "\n"
		}
		if strings.Index(line, "\n") != len(line)-1 {
			ts.Fatalf("%q is not one line", line)
		}
		ts.Setenv(args[0], strings.TrimSpace(line))
	},
	// jq .<member> <file> <output>: write a member of a JSON object to a file, as
	// `jq -r` does.
	"jq": func(ts *testscript.TestScript, _ bool, args []string) {
		var members map[string]json.RawMessage
		ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[1])), &members))
		var text string
		if json.Unmarshal(members[args[0][1:]], &text) != nil {
			text = string(members[args[0][1:]])
		}
		ts.Check(os.WriteFile(ts.MkAbs(args[2]), []byte(text+"\n"), 0o600))
	},
}

// runScripted runs `caddy signed-playback` in the folder of a script, with its folder of temporary files.
func runScripted(ts *testscript.TestScript, args []string) error {
	stdin := ""
	if file, ok := strings.CutPrefix(args[len(args)-1], "<"); ok {
		stdin, args = ts.ReadFile(file), args[:len(args)-1]
	}
	stdout, stderr, err := runIn(ts.MkAbs("."), ts.Getenv("TMPDIR"), stdin, args...)
	_, _ = io.WriteString(ts.Stdout(), stdout)
	_, _ = io.WriteString(ts.Stderr(), stderr)
	return err
}

// The error of a wrong command names the flag or the argument with its value. The command
// prints no result and no private key.
func TestCommandErrors(t *testing.T) {
	archive := must(txtar.ParseFile("testdata/command_errors.txtar"))
	dir := t.TempDir()
	archive.Files = append(archive.Files, txtar.File{Name: "key.json", Data: []byte(must(testKey().JWK()))}, txtar.File{Name: "public.json", Data: []byte(publicJWK(testKey()))})
	if err := txtar.Write(archive, dir); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	rows := regexp.MustCompile(`(?m)^'(.+?)' (.+)$`).FindAllStringSubmatch(strings.ReplaceAll(string(archive.Comment), "TOKEN", plainToken()), -1)
	if len(rows) < 75 {
		t.Errorf("testdata/command_errors.txtar has %d command lines, want at least 75", len(rows))
	}
	for _, row := range rows {
		var words []string
		for _, word := range regexp.MustCompile(`'[^']*'|\S+`).FindAllString(row[2], -1) {
			words = append(words, strings.Trim(word, "'"))
		}
		stdout, stderr, err := run(words...)
		switch {
		case err == nil || !strings.Contains(stderr, row[1]):
			t.Errorf("%s: %v and %q, want an error with %s", row[2], err, stderr, row[1])
		case stdout != "" && words[0] != "inspect":
			t.Errorf("%s: the output is %q, want none", row[2], stdout)
		case strings.Contains(stderr, "PRIVATE KEY-----") || strings.Contains(stderr, plainToken()):
			t.Errorf("%.40s: the error contains a secret: %s", row[2], stderr)
		}
	}
}

// keygen prints a key with which sign signs tokens and the gate accepts them. The gate does
// not keep the private key.
func TestKeygenSignAndGate(t *testing.T) {
	t.Parallel()
	key, _, err := run("keygen", "--kid", "fresh")
	must(key, err)
	file := writeFile(t, "key.json", key)
	url, _, err := run("sign", "--key", file, "--sub", "demo", "--exp", strconv.FormatInt(testTime.Unix()+3600, 10), "--url", "https://media.example.net")
	must(url, err)
	_, g, err := provisioned(t, &App{KeyFiles: []string{file}}, new(Gate))
	if err != nil {
		t.Fatal(err)
	}
	if a := ask(t, g, requestFor(t, strings.TrimSpace(url), nil)); !a.allowed() || a.origin[0].URL.Path != "/demo/manifest/video.m3u8" {
		t.Errorf("the gate answers %d %s %s, want the request allowed", a.status, a.reason, a.text)
	}
	if set := must(verification.LoadKeyFiles([]string{file})); strings.Contains(string(must(set.Lookup("fresh").JWK())), `"d"`) {
		t.Error("the gate keeps the private key")
	}
}
