package refusal

import (
	"cmp"
	"io"
	"net/http"
	"strconv"

	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
)

// Writer is the response writer of error routes. A refusal stays a refusal, even if a
// reverse_proxy there asks a server that has a page under every path. The headers of
// such a server pass by the same list as those of the origin: the browser shows the
// answer under the viewer's URL.
type Writer struct {
	http.ResponseWriter
	Passing headerpolicy.Response
	Earlier http.Header                       // from before the error route
	Refusal *Error                            // nil after an error behind the gate
	Page    func(http.ResponseWriter, *Error) // answers with the player page, nil for a line of text

	sent bool // the status
}

// status returns the status of the refusal, 0 after an error behind the gate.
func (w *Writer) status() int {
	if w.Refusal == nil {
		return 0
	}
	return w.Refusal.Reason.Status()
}

// WriteHeader implements http.ResponseWriter. Redirects pass, to a login page for
// example.
func (w *Writer) WriteHeader(status int) {
	refused := w.status()
	if refused != 0 && (status >= 200 && status < 300 || status == http.StatusNotModified) {
		status = refused
	}
	if _, hasBody := w.Header()["Content-Type"]; !hasBody && status == refused && !w.sent {
		w.dropHeaders()
		w.sent = true
		w.writeRefusal()
		return
	}
	w.send(status)
}

func (w *Writer) send(status int) {
	w.dropHeaders()
	w.sent = w.sent || status >= 200
	w.ResponseWriter.WriteHeader(status)
}

// writeRefusal answers a refusal that no error route has answered: Caddy then sends
// the status alone, and handlers that write a body have set its type before.
func (w *Writer) writeRefusal() {
	if w.Page != nil {
		w.Page(w.ResponseWriter, w.Refusal)
		return
	}
	body := w.Refusal.Error() + "\n"
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.ResponseWriter.WriteHeader(w.status())
	_, _ = io.WriteString(w.ResponseWriter, body) //nolint:gosec,nolintlint // it is text, which gosec does not see in each run; an error is a client that has cancelled
}

// dropHeaders drops the headers of the error route that may not pass, and restores the
// earlier ones that it has replaced. It may have removed some.
func (w *Writer) dropHeaders() {
	h := w.Header()
	for name := range h {
		if w.Passing.Passes(name) {
			continue
		}
		if earlier, ok := w.Earlier[name]; ok {
			h[name] = earlier
		} else {
			delete(h, name)
		}
	}
}

func (w *Writer) Write(p []byte) (int, error) {
	if !w.sent {
		w.send(cmp.Or(w.status(), http.StatusOK))
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController find the methods of the server's writer.
func (w *Writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }
