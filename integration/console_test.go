package integration

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/dom"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// found returns the first element with a role and a name, as assistive technology has
// them, or "". An empty name is any.
func (p *tab) found(t *testing.T, role, name string) runtime.RemoteObjectID {
	t.Helper()
	document, err := chromedp.Call(p.ctx, dom.GetDocument, dom.GetDocumentParams{})
	if err != nil {
		t.Fatal(err)
	}
	tree, err := chromedp.Call(p.ctx, accessibility.QueryAXTree, accessibility.QueryAXTreeParams{
		NodeID: document.Root.NodeID, Role: role, AccessibleName: name,
	})
	if err != nil {
		return "" // the document is a new one
	}
	for _, node := range tree.Nodes {
		if node.Ignored {
			continue
		}
		object, err := chromedp.Call(p.ctx, dom.ResolveNode, dom.ResolveNodeParams{BackendNodeID: node.BackendDOMNodeID})
		if err == nil {
			return object.Object.ObjectID
		}
	}
	return ""
}

// with calls a function of JavaScript on the element with a role and a name, once it is
// there.
func (p *tab) with(t *testing.T, role, name, function string) (result string) {
	t.Helper()
	eventually(t, "there is a "+role+" "+name, func() bool {
		object := p.found(t, role, name)
		if object == "" {
			return false
		}
		byValue, gesture := true, true
		called, err := chromedp.Call(p.ctx, runtime.CallFunctionOn, runtime.CallFunctionOnParams{
			FunctionDeclaration: function, ObjectID: object, ReturnByValue: &byValue, UserGesture: &gesture,
		})
		if err != nil || called.ExceptionDetails != nil {
			return false
		}
		_ = json.Unmarshal(called.Result.Value, &result) // other types stay ""
		return true
	})
	return result
}

// press uses a button, a link, a checkbox or the like with the keyboard.
func (p *tab) press(t *testing.T, role, name string) {
	t.Helper()
	p.with(t, role, name, `function() { this.focus() }`)
	key := kb.Enter
	if role == "checkbox" || role == "radio" {
		key = " "
	}
	p.do(t, chromedp.KeyEvent(key))
}

// fill replaces the text of a field, by typing.
func (p *tab) fill(t *testing.T, name, text string) {
	t.Helper()
	role := "textbox"
	if p.found(t, role, name) == "" && p.found(t, "searchbox", name) != "" {
		role = "searchbox"
	}
	p.with(t, role, name, `function() { this.focus(); this.select() }`)
	if _, err := chromedp.Call(p.ctx, input.InsertText, input.InsertTextParams{Text: text}); err != nil {
		t.Fatal(err)
	}
}

// choose selects an option by its text.
func (p *tab) choose(t *testing.T, name, option string) {
	t.Helper()
	text, _ := json.Marshal(option)
	p.with(t, "combobox", name, `function() {
		this.value = [...this.options].find(option => option.text === `+string(text)+`).value
		this.dispatchEvent(new Event("input", { bubbles: true }))
		this.dispatchEvent(new Event("change", { bubbles: true }))
	}`)
}

// shot keeps a picture of the page.
func (p *tab) shot(t *testing.T, file string, width int64, scheme string) {
	t.Helper()
	_, err := chromedp.Call(p.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
	if err != nil {
		t.Fatal(err)
	}
	p.do(t, chromedp.EmulateViewport(width, 800))
	whole := true
	picture, err := chromedp.Call(p.ctx, page.CaptureScreenshot, page.CaptureScreenshotParams{CaptureBeyondViewport: &whole})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, picture.Data, 0o644); err != nil {
		t.Fatal(err)
	}
}
