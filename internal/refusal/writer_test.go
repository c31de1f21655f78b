package refusal

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
)

// Attack: an error route asks a server that has a page under every path, so that a refusal looks
// like a success.
func TestErrorRoutesStayRefusals(t *testing.T) {
	t.Parallel()
	why := &Error{Reason: TokenExpired, Err: errors.New("expired")}
	for _, tc := range []struct {
		refusal      *Error
		status, want int
	}{
		{why, http.StatusOK, 401},
		{why, http.StatusPartialContent, 401},
		{why, http.StatusNotModified, 401},
		{why, http.StatusSeeOther, 303},
		{why, http.StatusTeapot, 418},
		{nil, http.StatusOK, 200},
	} {
		recorder := httptest.NewRecorder()
		w := &Writer{ResponseWriter: recorder, Refusal: tc.refusal}
		w.Header().Set("Content-Type", "text/html")
		w.Header().Set("Set-Cookie", "a=b")
		w.WriteHeader(tc.status)
		if recorder.Code != tc.want || recorder.Header().Get("Set-Cookie") != "" {
			t.Errorf("status %d of an error route became %d with %v, want %d", tc.status, recorder.Code, recorder.Header(), tc.want)
		}
	}
}
