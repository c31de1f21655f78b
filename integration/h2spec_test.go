package integration

import (
	"crypto/tls"
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// h2specVersion is the newest version that the Go module proxy has.
const h2specVersion = "v2.2.1+incompatible"

// specCase is one conformance test of h2spec.
type specCase struct {
	Section string `xml:"package,attr"`
	Name    string `xml:"classname,attr"`
	Failure string `xml:"failure"`
	Error   string `xml:"error"`

	id string // like http2/8.1.2.2/1
}

func (c specCase) fails() bool { return strings.TrimSpace(c.Failure+c.Error) != "" }

// h2spec runs the conformance tests of RFC 7540 and RFC 7541 against a server, or only
// one of them. It returns the results by section and name.
func h2spec(t testing.TB, addr, path string, id ...string) map[string]specCase {
	t.Helper()
	installed := execute(t, "..", "", "./.ci/tool", "github.com/summerwind/h2spec/cmd/h2spec", h2specVersion)
	if installed.code != 0 {
		t.Errorf("installing h2spec: %s", installed.stderr)
		return nil
	}
	host, port, _ := net.SplitHostPort(addr)
	report := filepath.Join(t.TempDir(), "report.xml")
	ran := execute(t, "", "", strings.TrimSpace(installed.stdout), append(id,
		"--tls", "--insecure", "--timeout", "4", "--host", host, "--port", port, "--path", path, "--junit-report", report)...)
	text, err := os.ReadFile(report)
	if err != nil {
		t.Errorf("h2spec: %v: %+v", err, ran)
		return nil
	}
	var suites struct {
		Cases []specCase `xml:"testsuite>testcase"`
	}
	if err := xml.Unmarshal(text, &suites); err != nil {
		t.Error(err)
	}
	cases, sections := make(map[string]specCase), make(map[string]int)
	for _, c := range suites.Cases {
		sections[c.Section]++
		c.id = fmt.Sprintf("%s/%d", c.Section, sections[c.Section])
		cases[c.Section+": "+c.Name] = c
	}
	return cases
}

// The gate does not change how its server speaks HTTP/2, for a request that passes, a
// response that is rewritten, and a refusal. h2spec must find nothing that it does not
// also find in Caddy without the gate, in the same process.
//
// Many cases send a request and then an invalid frame. A server that has already answered
// the request may ignore the frame (RFC 9113 section 8.1). Other cases wait for the
// answer. So a case must pass where a request is answered at once, or where
// its answer is held back until the server has met the invalid frame, which cancels the
// request. Every answer has a body, which many cases hold back with a window of zero.
func TestH2spec(t *testing.T) {
	t.Parallel()      // most of it is waiting
	const least = 140 // of 145 cases; some have the same name
	o := startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			<-r.Context().Done()
			return
		}
		_, _ = io.WriteString(w, "#EXTM3U\n")
	}))
	held := "@held query held=\nforward_auth @held " + o.addr() + " {\nuri /hold\n}\n"
	rest := "reverse_proxy " + o.addr() + "\nhandle_errors {\nrespond refused\n}\n"
	bare := freeAddr(t)
	g := startTLS(t, o, config{site: held + rest, sites: "https://" + bare + " {\ntls internal\n" + held + "error /refused 401\n" + rest + "}\n"})
	eventually(t, "bare Caddy has made its certificate", func() bool {
		conn, err := tls.Dial("tcp", bare, &tls.Config{InsecureSkipVerify: true})
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	gate := net.JoinHostPort("localhost", port(g.addr)) // the site's name
	viewer := "/" + mint(t, "vidA", nil)
	ways := []struct {
		name, gate, bare string // paths
		found, known     map[string]specCase
	}{
		{name: "a segment", gate: viewer + "/seg.ts", bare: "/vidA/seg.ts"},
		{name: "a manifest", gate: viewer + "/video.m3u8", bare: "/vidA/video.m3u8"},
		{name: "a refusal", gate: "/vidA/seg.ts", bare: "/refused"},
	}
	var running sync.WaitGroup
	for i := range ways {
		way := &ways[i]
		running.Go(func() { way.found = h2spec(t, gate, way.gate) })
		running.Go(func() { way.known = h2spec(t, bare, way.bare) })
	}
	running.Wait()
	for _, way := range ways {
		if len(way.known) < least || len(way.found) != len(way.known) {
			t.Errorf("%s: h2spec has run %d cases against bare Caddy and %d against the gate", way.name, len(way.known), len(way.found))
		}
		for name, c := range way.found {
			if !c.fails() {
				continue
			}
			running.Go(func() {
				switch {
				case !h2spec(t, gate, way.gate+"?held=", c.id)[name].fails():
				case way.known[name].fails() && h2spec(t, bare, way.bare+"?held=", c.id)[name].fails():
					t.Logf("%s: bare Caddy fails, too: %s", way.name, name)
				default:
					t.Errorf("%s: %s: %s%s", way.name, name, c.Failure, c.Error)
				}
			})
		}
	}
	running.Wait()
}
