package integration

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// All tests share one Chromium. It finds every host below .test on loopback, and
// treats gateHost as if it spoke TLS, because browsers send Sec-Fetch-Dest to no
// other host.
const gateHost = "gate.media.test"

var chromium struct {
	once sync.Once
	ctx  context.Context
	stop func()
	err  error
}

func TestMain(m *testing.M) {
	for name, value := range map[string]string{"API_SECRET": apiSecret, "API_KEY": apiKeyOf} {
		if err := os.Setenv(name, value); err != nil {
			panic(err)
		}
	}
	code := m.Run()
	if chromium.stop != nil {
		chromium.stop()
	}
	_ = os.RemoveAll(madeClips.dir)
	os.Exit(code)
}

func startChromium(path string) {
	dir, err := os.MkdirTemp("", "chromium")
	if err != nil {
		chromium.err = err
		return
	}
	allocator, kill := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path),
		chromedp.UserDataDir(filepath.Join(dir, "profile")),
		chromedp.Env("TMPDIR="+dir),
		chromedp.WSURLReadTimeout(startTimeout),
		chromedp.NoSandbox, // root has none, and the pages are our own
		chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("autoplay-policy", "no-user-gesture-required"),
		chromedp.Flag("mute-audio", true),
		chromedp.Flag("host-resolver-rules", "MAP *.test 127.0.0.1"),
		chromedp.Flag("short-reporting-delay", true),
		chromedp.Flag("ignore-certificate-errors-spki-list", testServerKey()),
		chromedp.Flag("unsafely-treat-insecure-origin-as-secure", "*.media.test"),
	)...)
	ctx, _ := chromedp.NewContext(allocator)
	chromium.ctx, chromium.err = ctx, chromedp.Do(ctx)
	chromium.stop = func() {
		ctx, cancel := context.WithTimeout(ctx, startTimeout)
		defer cancel()
		_ = chromedp.Cancel(ctx)
		kill()
		_ = os.RemoveAll(dir)
	}
}

// testServerKey is the digest of the key of all servers of httptest, so that Chromium
// trusts them.
func testServerKey() string {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	digest := sha256.Sum256(server.Certificate().RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(digest[:])
}

// tab is a tab of the browser, with a cache and a profile of its own.
type tab struct {
	ctx context.Context

	mu       sync.Mutex
	requests []string // addresses
	console  []string
	dialogs  int
	contexts map[string]runtime.ExecutionContextID // by origin; the last document of each
}

// openTab opens a tab in which scripts run before the scripts of any page.
func openTab(t *testing.T, scripts ...string) *tab {
	t.Helper()
	path := tool(t, "chromium")
	chromium.once.Do(func() { startChromium(path) })
	if chromium.err != nil {
		t.Fatalf("starting Chromium: %v", chromium.err)
	}
	ctx, closeTab := chromedp.NewContext(chromium.ctx, chromedp.WithNewBrowserContext())
	t.Cleanup(closeTab)
	p := &tab{ctx: ctx, contexts: make(map[string]runtime.ExecutionContextID)}
	if err := chromedp.Listen(ctx, p.hear); err != nil {
		t.Fatalf("opening a tab: %v", err)
	}
	for _, script := range scripts {
		must(chromedp.Call(ctx, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: script}))(t)
	}
	return p
}

// openPage opens a page in a tab of its own.
func openPage(t *testing.T, address string, scripts ...string) *tab {
	t.Helper()
	p := openTab(t, scripts...)
	p.open(t, address)
	return p
}

func (p *tab) hear(event any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch event := event.(type) {
	case *cdplog.EventEntryAdded:
		p.console = append(p.console, event.Entry.Text)
	case *runtime.EventExceptionThrown:
		p.console = append(p.console, event.ExceptionDetails.Text)
	case *runtime.EventExecutionContextCreated:
		p.contexts[event.Context.Origin] = event.Context.ID
	case *network.EventRequestWillBeSent:
		p.requests = append(p.requests, event.Request.URL)
	case *page.EventJavascriptDialogOpening:
		p.dialogs++
	}
}

// asked returns the addresses that the tab has asked for so far.
func (p *tab) asked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.requests)
}

// logged reports whether a message in the console contains a text.
func (p *tab) logged(text string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.console, func(line string) bool { return strings.Contains(line, text) })
}

func (p *tab) open(t *testing.T, address string) {
	t.Helper()
	p.do(t, chromedp.Navigate(address))
}

func (p *tab) do(t *testing.T, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, startTimeout)
	defer cancel()
	noError(t, chromedp.Do(ctx, steps...))
}

// inFrame has evaluate run a script in a frame of another origin. Chromium has a process of
// its own for each site, and only frames of the page's site are in this tab's.
func (p *tab) inFrame(origin string) chromedp.EvaluateOption {
	p.mu.Lock()
	defer p.mu.Unlock()
	id := p.contexts[origin]
	return func(params *runtime.EvaluateParams) { params.ContextID = id }
}

// until waits until a script is true.
func (p *tab) until(t *testing.T, what, script string) {
	t.Helper()
	eventually(t, what, func() bool { return evaluate[bool](t, p, script) })
}

// evaluate runs a script in the page and awaits the promise that it returns.
func evaluate[T any](t *testing.T, p *tab, script string, options ...chromedp.EvaluateOption) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, startTimeout)
	defer cancel()
	result, err := chromedp.Run(ctx, chromedp.Evaluate[T](script, append(options, chromedp.EvalAwaitPromise)...))
	if err != nil {
		t.Fatalf("%.40s…: %v", script, err)
	}
	return result
}
